# Mask R-CNN with FPN on HPViT-B from MAE weights.
# Heads: ViTDet (arXiv 2203.16527, appendix A.1): LN in FPN and heads, 2-conv RPN, 4conv1fc box head.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
custom_imports = dict(imports=['mmhpvit'], allow_failed_imports=False)

norm_cfg = dict(type='LN2d')
model = dict(
    # MAE was trained with ImageNet's mean and standard deviation, which the inherited preprocessor has.
    backbone=dict(
        _delete_=True,
        type='HPViT',
        plain='vit_base_patch16_224.mae',
        drop_path_rate=0.1,  # ViTDet, appendix A.2, table 10
        # Depths, attention, pooling and kernel are the defaults of HPViT; they are ours.
        init_cfg=dict(type='PlainViT'),  # checkpoint=FILE for your own weights
    ),
    neck=dict(in_channels=[768, 768, 768, 768], norm_cfg=norm_cfg),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
