# UPerNet on HPViT-B from MAE weights. Head widths equal to the ViT's: BEiT and MAE on ADE20K.
_base_ = 'mmseg::_base_/models/upernet_swin.py'
custom_imports = dict(imports=['mmhpvit'], allow_failed_imports=False)

model = dict(
    # MAE was trained with ImageNet's mean and standard deviation, which the inherited preprocessor has.
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='HPViT',
        plain='vit_base_patch16_224.mae',
        drop_path_rate=0.1,  # mmseg's config of MAE
        grid_spacing=2,  # cheaper and no worse: docs/study.md
        # Depths, attention, pooling and kernel are the defaults of HPViT; they are ours.
        init_cfg=dict(type='PlainViT'),  # checkpoint=FILE for your own weights
    ),
    decode_head=dict(in_channels=[768, 768, 768, 768], channels=768),
    auxiliary_head=dict(in_channels=768),
)
