# HPViT-B from MAE weights, for leaves that put it into a model of their own: model = dict(backbone=_base_.vit).
# MAE was trained with ImageNet's mean and standard deviation, which the models of mmdet and mmseg have.
custom_imports = dict(imports=['mmhpvit'], allow_failed_imports=False)
vit = dict(
    _delete_=True,
    type='HPViT',
    plain='vit_base_patch16_224.mae',
    grid_spacing=2,  # cheaper and no worse: docs/study.md; for large images: docs/depths-and-layout.md
    drop_path_rate=0.1,  # ViTDet, appendix A.2, table 10; mmseg's config of MAE
    init_cfg=dict(type='PlainViT'),  # checkpoint=FILE for your own weights
)
