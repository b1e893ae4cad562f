_base_ = './mask-rcnn_hpvit-b-mae_fpn_8xb8-amp-lsj-100e_coco.py'
# DINO was trained with ImageNet's mean and standard deviation, as MAE was. Rates of B: ours.
model = dict(
    backbone=dict(plain='vit_small_patch16_224.dino'),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
