_base_ = [
    '../_base_/models/mask-rcnn_hpvit-b-mae_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/vitdet-adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='coco/segm_mAP'))
# grid_spacing=2 suits these image sizes: docs/depths-and-layout.md.
model = dict(backbone=dict(grid_spacing=2))
