# The baseline. Its maps come from several depths, as in mmseg's own configs of plain ViTs.
_base_ = ['./upernet_hpvit-b-mae_8xb2-160k_ade20k-512x512.py', '../_base_/backbones/plain-vit-b-mae.py']
model = dict(backbone=dict(_base_.plain_vit, after=(3, 6, 9, 12)))
