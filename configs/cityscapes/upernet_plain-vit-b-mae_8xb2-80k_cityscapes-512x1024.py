# The baseline. Its maps come from several depths, as in mmseg's own configs of plain ViTs.
_base_ = ['./upernet_hpvit-b-mae_8xb2-80k_cityscapes-512x1024.py', '../_base_/backbones/plain-vit-b-mae.py']
model = dict(backbone=dict(_base_.plain_vit, after=(3, 6, 9, 12)))
