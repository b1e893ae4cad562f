# The plain ViT, its patch embedding at 1/4 and its first quarter of blocks at 1/8: about twice its FLOPs.
_base_ = './mask-rcnn_plain-vit-b-mae_fpn_8xb8-amp-lsj-100e_coco.py'
model = dict(backbone=dict(type='TwoScaleViT'))
