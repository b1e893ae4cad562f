_base_ = './upernet_hpvit-b-mae_8xb2-160k_ade20k-512x512.py'
# Drop path 0.2 and layer decay 0.75 for L: ours, after MAE's image classification with ViT-L.
model = dict(
    backbone=dict(plain='vit_large_patch16_224.mae', drop_path_rate=0.2, with_cp=True),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024], channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.75))
