# The schedule of ADE20K in half the iterations, as mmseg has it for Cityscapes; with this optimiser: ours.
_base_ = './mae-adamw_160k.py'

train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = 80000
