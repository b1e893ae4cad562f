# mmdet's ATSS on levels 1/8 to 1/128, with the schedule of the Mask R-CNN here.
_base_ = [
    '../_base_/backbones/hpvit-b-mae.py',
    '../_base_/optimizers/vitdet-adamw.py',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
]
model = dict(
    backbone=dict(_base_.vit, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[768, 768, 768], start_level=0, norm_cfg=dict(type='LN2d')),
)
optim_wrapper = dict(_base_.vitdet_adamw, _delete_=True)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'))
