# The baseline.
_base_ = ['./mask-rcnn_hpvit-b-mae_fpn_8xb8-amp-lsj-100e_coco.py', '../_base_/backbones/plain-vit-b-mae.py']
model = dict(backbone=_base_.plain_vit)
