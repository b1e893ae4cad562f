# mmdet's 1x (12 epochs, steps at 8 and 11, batch 16) with ViTDet's optimiser; the combination is ours.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    constructor='LayerIdDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.7),  # ViT-B; 0.8 for L (ViTDet, appendix A.2)
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
)
