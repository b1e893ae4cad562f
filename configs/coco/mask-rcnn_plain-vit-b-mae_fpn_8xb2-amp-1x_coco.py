_base_ = './mask-rcnn_hpvit-b-mae_fpn_8xb2-amp-1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='PlainViTPyramid',
        plain='vit_base_patch16_224.mae',
        drop_path_rate=0.1,
        init_cfg=dict(type='PlainViT'),
    )
)
