# ImageNet classifier on HPViT-B from MAE weights: the last map, averaged, and one linear layer.
# Head, label smoothing, mixup and cutmix: MAE's fine-tuning (FINETUNE.md of its published code).
custom_imports = dict(imports=['mmhpvit'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='HPViT',
        plain='vit_base_patch16_224.mae',
        out_indices=(3,),
        drop_path_rate=0.1,
        with_cp=True,  # 128 images a GPU in float32; ours
        init_cfg=dict(type='PlainViT'),  # checkpoint=FILE for your own weights
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
