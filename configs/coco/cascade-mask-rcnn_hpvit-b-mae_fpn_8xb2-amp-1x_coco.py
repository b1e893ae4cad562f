_base_ = [
    '../_base_/backbones/hpvit-b-mae.py',
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/vitdet-adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    backbone=_base_.vit,
    neck=dict(in_channels=[768, 768, 768, 768], norm_cfg=dict(type='LN2d')),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='coco/segm_mAP'))
