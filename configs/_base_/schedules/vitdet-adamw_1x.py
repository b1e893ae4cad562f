# mmdet's 1x (12 epochs, steps at 8 and 11, batch 16) with ViTDet's optimiser; the combination is ours.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', '../optimizers/vitdet-adamw.py']

optim_wrapper = dict(_base_.vitdet_adamw, _delete_=True)
