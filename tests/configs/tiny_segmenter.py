# The ADE20K recipe on timm's smallest ViT, some iterations on the generated set in $SHAPES.
_base_ = '../../configs/ade20k/upernet_hpvit-b-mae_8xb2-160k_ade20k-512x512.py'
data_root = '{{$SHAPES:data/shapes}}'
crop_size = (64, 64)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        plain='test_vit',
        drop_path_rate=0.0,
        init_cfg=dict(_delete_=True, type='Normal', layer='Conv2d', std=0.02),
    ),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=32, num_classes=5),
    auxiliary_head=dict(in_channels=64, channels=16, num_classes=5),
    test_cfg=dict(_delete_=True, mode='whole'),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(
        classes=('background', 'disc', 'box', 'triangle', 'star'),
        palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]],
    ),
    img_suffix='.png',
    data_prefix=dict(img_path='train', seg_map_path='semantic/train'),
    pipeline=train_pipeline,
)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        dataset, data_prefix=dict(img_path='val', seg_map_path='semantic/val'), pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=6, val_interval=6)
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=2), logger=dict(interval=1))
randomness = dict(seed=0)
