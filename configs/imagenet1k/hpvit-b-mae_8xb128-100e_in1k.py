# The inherited data set has RandAugment and random erasing 0.25, as in MAE's published code.
_base_ = [
    '../_base_/models/classifier_hpvit-b-mae.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../_base_/schedules/mae-adamw_100e.py',
    'mmpretrain::_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='auto'))
