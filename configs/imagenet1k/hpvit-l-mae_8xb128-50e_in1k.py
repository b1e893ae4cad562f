# MAE's differences for ViT-L (FINETUNE.md of its published code): 1e-3 for 256 images, 50 epochs, decay 0.75, drop
# path 0.2.
_base_ = './hpvit-b-mae_8xb128-100e_in1k.py'
model = dict(
    backbone=dict(plain='vit_large_patch16_224.mae', drop_path_rate=0.2),
    head=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.75), optimizer=dict(lr=4e-3))
epochs = 50
train_cfg = dict(max_epochs=epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = epochs
