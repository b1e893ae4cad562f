# mmdet's DINO (arXiv 2203.03605) with 4 scales, 12 epochs: its learning rate, clipping and weight decay; the
# fixed factor for the backbone becomes layer-wise decay.
_base_ = ['../_base_/backbones/hpvit-b-mae.py', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py']
model = dict(
    backbone=dict(_base_.vit, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[768, 768, 768]),
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',  # float32: in half precision a confident prediction has an infinite cost
    constructor='LayerIdDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.7),  # ViT-B (ViTDet, appendix A.2)
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'))
