# The demo's detector on timm's smallest ViT, some iterations on the generated set in $SHAPES.
_base_ = '../../configs/demo/mask-rcnn_hpvit-ti_fpn_shapes.py'
data_root = '{{$SHAPES:data/shapes}}/'
scale = (96, 96)
model = dict(
    backbone=dict(plain='test_vit', init_cfg=dict(_delete_=True, type='Normal', layer='Conv2d', std=0.02)),
    neck=dict(in_channels=[64, 64, 64, 64]),
)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=6, val_interval=6)
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=2), logger=dict(interval=1))
