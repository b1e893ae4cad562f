_base_ = './mask-rcnn_hpvit-b-mae_fpn_8xb8-amp-lsj-100e_coco.py'
model = dict(backbone=dict(type='PlainViTPyramid'))
