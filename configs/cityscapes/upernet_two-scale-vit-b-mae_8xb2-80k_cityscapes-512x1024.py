# The plain ViT and its first quarter of blocks once more at 1/8: about twice the plain ViT's operations.
_base_ = './upernet_plain-vit-b-mae_8xb2-80k_cityscapes-512x1024.py'
model = dict(backbone=dict(type='TwoScaleViT'))
