_base_ = [
    '../_base_/models/upernet_hpvit-b-mae.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../_base_/schedules/mae-adamw_160k.py',
    'mmseg::_base_/default_runtime.py',
]
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(341, 341)),  # MAE's in mmseg
)
train_dataloader = dict(batch_size=2)
