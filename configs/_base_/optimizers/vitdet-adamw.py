# ViTDet's AdamW with layer-wise decay (arXiv 2203.16527, appendix A.2), in mixed precision:
# optim_wrapper = dict(_base_.vitdet_adamw, _delete_=True).
vitdet_adamw = dict(
    type='AmpOptimWrapper',
    constructor='LayerIdDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.7),  # ViT-B; 0.8 for L
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
)
