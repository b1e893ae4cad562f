# mmdet's ATSS on levels 1/8 to 1/128, with the schedule of the Mask R-CNN here.
_base_ = ['../_base_/backbones/hpvit-b-mae.py', 'mmdet::atss/atss_r50_fpn_1x_coco.py']
model = dict(
    backbone=dict(_base_.vit, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[768, 768, 768], start_level=0, norm_cfg=dict(type='LN2d')),
)
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    constructor='LayerIdDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.7),  # ViT-B (ViTDet, appendix A.2)
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'))
