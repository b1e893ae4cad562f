# The ImageNet recipe on timm's smallest ViT, two epochs on the folders of classes in $CLASSES.
_base_ = '../../configs/imagenet1k/hpvit-b-mae_8xb128-100e_in1k.py'
data_root = '{{$CLASSES:data/classes}}'
model = dict(
    backbone=dict(
        plain='test_vit',
        drop_path_rate=0.0,
        init_cfg=dict(_delete_=True, type='Normal', layer='Conv2d', std=0.02),
    ),
    head=dict(num_classes=2, in_channels=64, topk=(1,)),
)
data_preprocessor = dict(num_classes=2)
train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 64
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 72
test_pipeline[2].crop_size = 64
dataset = dict(_delete_=True, type='CustomDataset', data_root=data_root, pipeline=train_pipeline)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(dataset, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=2, val_interval=2)
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=True)]
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
randomness = dict(seed=0)
