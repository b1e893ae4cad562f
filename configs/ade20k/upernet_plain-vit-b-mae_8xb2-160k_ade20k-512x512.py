# The baseline. Its maps are of several blocks, as in mmseg's own configs of plain ViTs.
_base_ = './upernet_hpvit-b-mae_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='PlainViTPyramid',
        after=(3, 6, 9, 12),
        plain='vit_base_patch16_224.mae',
        drop_path_rate=0.1,
        init_cfg=dict(type='PlainViT'),
    )
)
