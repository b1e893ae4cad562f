# The ImageNet recipe with HPViT-Ti on 1000 photographs of 100 classes, at 160 pixels.
_base_ = '../../../configs/imagenet1k/hpvit-b-mae_8xb128-100e_in1k.py'

shared = '{{$MMHPVIT_TEST_DATA:../shared}}'
data_root = shared + '/data/caltech101/'
model = dict(
    backbone=dict(
        plain='vit_tiny_patch16_224',
        drop_path_rate=0.0,
        with_cp=False,
        init_cfg=dict(checkpoint=shared + '/weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors'),
    ),
    head=dict(num_classes=100, in_channels=192),
    # Mixing images is for long trainings.
    train_cfg=None,
)
# AugReg weights were trained with mean and standard deviation 0.5.
data_preprocessor = dict(num_classes=100, mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=160, crop_ratio_range=(0.35, 1.0), interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=182, edge='short', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=160),
    dict(type='PackInputs'),
]
dataset = dict(_delete_=True, type='CustomDataset', data_root=data_root)
train_dataloader = dict(
    batch_size=20,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(dataset, data_prefix='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=20,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(dataset, data_prefix='val', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
max_epochs = 3
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=0.5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0.5, end=max_epochs, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=dict(decay_rate=0.75))
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=1), logger=dict(interval=10))
randomness = dict(seed=0)
