# The plain ViT and its first quarter of blocks once more at 1/8: about twice the plain ViT's operations.
_base_ = './mask-rcnn_plain-vit-b-mae_fpn_8xb2-amp-1x_coco.py'
model = dict(backbone=dict(type='TwoScaleViT'))
