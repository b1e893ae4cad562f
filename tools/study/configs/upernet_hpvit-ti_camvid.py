# The ADE20K recipe with HPViT-Ti on road scenes of 480x360 with 11 classes.
_base_ = '../../../configs/ade20k/upernet_hpvit-b-mae_8xb2-160k_ade20k-512x512.py'

data_root = '{{$MMHPVIT_TEST_DATA:../shared}}/data/camvid/'
crop_size = (224, 224)
metainfo = dict(
    classes=(
        *('sky', 'building', 'pole', 'road', 'pavement', 'tree'),
        *('sign_symbol', 'fence', 'car', 'pedestrian', 'bicyclist'),
    ),
    palette=[
        *([128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [0, 0, 192], [128, 128, 0]),
        *([192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]),
    ],
)
model = dict(
    # AugReg weights were trained with mean and standard deviation 0.5.
    data_preprocessor=dict(size=crop_size, mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(
        _delete_=True,  # so that the type alone may be another
        type='HPViT',
        plain='vit_tiny_patch16_224',
        drop_path_rate=0.0,
        init_cfg=dict(
            type='PlainViT',
            checkpoint='{{$MMHPVIT_TEST_DATA:../shared}}/weights/'
            'vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors',
        ),
    ),
    decode_head=dict(in_channels=[192, 192, 192, 192], channels=96, num_classes=11),
    auxiliary_head=dict(in_channels=192, channels=96, num_classes=11),
    test_cfg=dict(_delete_=True, mode='whole'),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
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
    metainfo=metainfo,
    img_suffix='.jpg',
    seg_map_suffix='.png',
    data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
    pipeline=train_pipeline,
)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        dataset,
        data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
max_iters = 300
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=30, end=max_iters, by_epoch=False),
]
optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=dict(decay_rate=0.75))
default_hooks = dict(checkpoint=dict(interval=100, max_keep_ckpts=1), logger=dict(interval=20))
randomness = dict(seed=0)
