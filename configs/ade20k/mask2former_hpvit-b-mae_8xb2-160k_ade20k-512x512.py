# mmseg's Mask2Former (arXiv 2112.01527): its learning rate, clipping, weight decay and schedule; the fixed factor
# for the backbone becomes layer-wise decay. Needs mmdet.
_base_ = [
    '../_base_/optimizers/mask2former-adamw.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
]
custom_imports = dict(imports=['mmdet.models', 'mmhpvit'], allow_failed_imports=False)
# mmseg's file has custom_imports too, which may not come from two bases; so not from _base_/backbones.
vit = dict(
    _delete_=True,
    type='HPViT',
    plain='vit_base_patch16_224.mae',
    grid_spacing=2,
    drop_path_rate=0.1,
    init_cfg=dict(type='PlainViT'),  # checkpoint=FILE for your own weights
)
model = dict(backbone=vit, decode_head=dict(in_channels=[768, 768, 768, 768]))
optim_wrapper = dict(_base_.mask2former_adamw, _delete_=True)
optim_wrapper['paramwise_cfg']['decay_rate'] = 0.65  # ViT-B (mmseg's config of MAE)
# A run that dies loses 2000 iterations at the most.
default_hooks = dict(checkpoint=dict(interval=2000, max_keep_ckpts=2))
custom_hooks = [dict(type='SkipTrainedData')]
