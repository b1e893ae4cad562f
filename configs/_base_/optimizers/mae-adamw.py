# AdamW with layer-wise decay as in mmseg's config of MAE (mae-base_upernet, after BEiT) and MAE's own fine-tuning:
# optim_wrapper = dict(_base_.mae_adamw, _delete_=True).
mae_adamw = dict(
    type='OptimWrapper',
    constructor='LayerIdDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.65),  # ViT-B
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
