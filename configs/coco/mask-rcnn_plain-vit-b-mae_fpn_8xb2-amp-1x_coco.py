_base_ = './mask-rcnn_hpvit-b-mae_fpn_8xb2-amp-1x_coco.py'
model = dict(backbone=dict(type='PlainViTPyramid'))
