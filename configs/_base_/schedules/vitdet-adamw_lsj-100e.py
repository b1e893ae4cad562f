# ViTDet's schedule (arXiv 2203.16527, appendix A.2, and its published configs): 184375 iterations of
# batch 64, which is 100 epochs of COCO, with steps at 8/9 and 26/27 of them.
_base_ = '../optimizers/vitdet-adamw.py'

max_iters = 184375
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=10000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', begin=0, end=max_iters, by_epoch=False, milestones=[163889, 177546], gamma=0.1),
]
optim_wrapper = _base_.vitdet_adamw
custom_hooks = [dict(type='SkipTrainedData')]
auto_scale_lr = dict(enable=False, base_batch_size=64)
