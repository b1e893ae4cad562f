# The plain ViT, its patch embedding at 1/4 and its first quarter of blocks at 1/8: about twice its FLOPs.
# The map at 1/16 comes after half of the blocks, the map at 1/32 after all.
_base_ = ['./upernet_hpvit-b-mae_8xb2-160k_ade20k-512x512.py', '../_base_/backbones/plain-vit-b-mae.py']
model = dict(backbone=dict(_base_.plain_vit, type='TwoScaleViT', middle_depth=6))
