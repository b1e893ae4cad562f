# Mask2Former's rate, clipping and weight decay (arXiv 2112.01527); layer-wise decay replaces its fixed factor for the
# backbone: optim_wrapper = dict(_base_.mask2former_adamw, _delete_=True).
mask2former_adamw = dict(
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
