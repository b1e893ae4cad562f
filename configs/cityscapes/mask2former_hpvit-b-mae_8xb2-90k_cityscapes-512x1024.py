# mmseg's Mask2Former (arXiv 2112.01527): its learning rate, clipping, weight decay and schedule; the fixed factor
# for the backbone becomes layer-wise decay. Needs mmdet.
_base_ = [
    '../_base_/backbones/hpvit-b-mae.py',
    'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
]
custom_imports = dict(imports=['mmdet.models', 'mmhpvit'], allow_failed_imports=False)
model = dict(backbone=_base_.vit, decode_head=dict(in_channels=[768, 768, 768, 768]))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='LayerIdDecayConstructor',
    paramwise_cfg=dict(
        decay_rate=0.65,  # ViT-B (mmseg's config of MAE)
        custom_keys=dict(
            query_embed=dict(decay_mult=0.0),
            query_feat=dict(decay_mult=0.0),
            level_embed=dict(decay_mult=0.0),
        ),
    ),
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
# A run that dies loses at most 2000 iterations.
default_hooks = dict(checkpoint=dict(interval=2000, max_keep_ckpts=2))
custom_hooks = [dict(type='SkipTrainedData')]
