# The last map of the plain ViT, at 1/16.
_base_ = './hpvit-b-mae_8xb128-100e_in1k.py'
model = dict(backbone=dict(type='PlainViTPyramid', out_indices=(2,)))
