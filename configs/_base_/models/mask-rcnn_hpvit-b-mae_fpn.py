# Mask R-CNN with FPN on HPViT-B from MAE weights.
# Heads: ViTDet (arXiv 2203.16527, appendix A.1): LN in FPN and heads, 2-conv RPN, 4conv1fc box head.
_base_ = ['../backbones/hpvit-b-mae.py', 'mmdet::_base_/models/mask-rcnn_r50_fpn.py']

norm_cfg = dict(type='LN2d')
model = dict(
    backbone=_base_.vit,
    neck=dict(in_channels=[768, 768, 768, 768], norm_cfg=norm_cfg),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
