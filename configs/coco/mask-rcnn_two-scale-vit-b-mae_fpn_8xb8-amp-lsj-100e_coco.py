# The plain ViT and its first quarter of blocks once more at 1/8: about twice the plain ViT's operations.
_base_ = './mask-rcnn_plain-vit-b-mae_fpn_8xb8-amp-lsj-100e_coco.py'
model = dict(backbone=dict(type='TwoScaleViT'))
