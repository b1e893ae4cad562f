# The plain ViT-B from MAE weights, to replace HPViT: model = dict(backbone=_base_.plain_vit).
plain_vit = dict(
    _delete_=True,
    type='PlainViTPyramid',
    plain='vit_base_patch16_224.mae',
    drop_path_rate=0.1,  # as for HPViT
    init_cfg=dict(type='PlainViT'),  # checkpoint=FILE for your own weights
)
