# Levels 1/8 to 1/128, as RetinaNet has them; the two coarsest are the neck's.
_base_ = [
    '../_base_/backbones/hpvit-b-mae.py',
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/vitdet-adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    backbone=dict(_base_.vit, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[768, 768, 768], start_level=0, norm_cfg=dict(type='LN2d')),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'))
