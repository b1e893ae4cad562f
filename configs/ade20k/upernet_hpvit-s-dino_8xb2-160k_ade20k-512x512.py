_base_ = './upernet_hpvit-b-mae_8xb2-160k_ade20k-512x512.py'
# DINO was trained with ImageNet's mean and standard deviation, as MAE was. Rates of B, head width of S: ours.
model = dict(
    backbone=dict(plain='vit_small_patch16_224.dino'),
    decode_head=dict(in_channels=[384, 384, 384, 384], channels=384),
    auxiliary_head=dict(in_channels=384),
)
