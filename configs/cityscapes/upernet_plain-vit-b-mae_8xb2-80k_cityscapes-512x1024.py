_base_ = './upernet_hpvit-b-mae_8xb2-80k_cityscapes-512x1024.py'
model = dict(backbone=dict(type='PlainViTPyramid'))
