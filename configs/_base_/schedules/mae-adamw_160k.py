# The fine-tuning of UPerNet in mmseg's config of MAE (mae-base_upernet, after BEiT): AdamW, layer-wise decay,
# 1500 iterations of warm-up, then linear decay.
_base_ = ['mmseg::_base_/schedules/schedule_160k.py', '../optimizers/mae-adamw.py']

optimizer = None  # the variable that the inherited schedule builds its SGD from
optim_wrapper = dict(_base_.mae_adamw, _delete_=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=160000, by_epoch=False),
]
# A run that dies loses 2000 iterations at the most.
default_hooks = dict(checkpoint=dict(interval=2000, max_keep_ckpts=2, save_best='mIoU'))
custom_hooks = [dict(type='SkipTrainedData')]
auto_scale_lr = dict(enable=False, base_batch_size=16)
