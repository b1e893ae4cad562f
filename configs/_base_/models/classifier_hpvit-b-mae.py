# ImageNet classifier on HPViT-B from MAE weights: the last map, averaged, and one linear layer.
# Head, label smoothing, mixup and cutmix: MAE's fine-tuning (FINETUNE.md of its published code).
_base_ = '../backbones/hpvit-b-mae.py'

backbone = dict(_base_.vit, out_indices=(3,), with_cp=True)  # 128 images a GPU in float32; ours
del backbone['_delete_']  # there is no backbone to replace
del backbone['grid_spacing']  # 1, as in pre-training, at its image size
model = dict(
    type='ImageClassifier',
    backbone=backbone,
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
