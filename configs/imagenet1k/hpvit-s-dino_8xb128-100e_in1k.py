# There are no MAE weights of ViT-S; decay as for ViT-B is ours.
_base_ = './hpvit-b-mae_8xb128-100e_in1k.py'
model = dict(backbone=dict(plain='vit_small_patch16_224.dino'), head=dict(in_channels=384))
