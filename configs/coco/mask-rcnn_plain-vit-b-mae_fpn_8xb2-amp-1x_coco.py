# The baseline.
_base_ = ['./mask-rcnn_hpvit-b-mae_fpn_8xb2-amp-1x_coco.py', '../_base_/backbones/plain-vit-b-mae.py']
model = dict(backbone=_base_.plain_vit)
