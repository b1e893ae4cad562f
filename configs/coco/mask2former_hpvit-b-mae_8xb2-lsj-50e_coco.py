# mmdet's Mask2Former for instances (arXiv 2112.01527): its learning rate, clipping, weight decay and schedule;
# the fixed factor for the backbone becomes layer-wise decay.
_base_ = ['../_base_/backbones/hpvit-b-mae.py', 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py']
model = dict(backbone=_base_.vit, panoptic_head=dict(in_channels=[768, 768, 768, 768]))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',  # float32: matching costs over whole masks overflow in half precision
    constructor='LayerIdDecayConstructor',
    paramwise_cfg=dict(
        decay_rate=0.7,  # ViT-B (ViTDet, appendix A.2)
        custom_keys=dict(
            query_embed=dict(decay_mult=0.0),
            query_feat=dict(decay_mult=0.0),
            level_embed=dict(decay_mult=0.0),
        ),
    ),
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
custom_hooks = [dict(type='SkipTrainedData')]
