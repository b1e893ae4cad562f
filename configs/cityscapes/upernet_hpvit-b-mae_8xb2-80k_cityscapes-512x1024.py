_base_ = [
    '../_base_/models/upernet_hpvit-b-mae.py',
    'mmseg::_base_/datasets/cityscapes.py',
    '../_base_/schedules/mae-adamw_80k.py',
    'mmseg::_base_/default_runtime.py',
]
crop_size = (512, 1024)
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
    test_cfg=dict(
        mode='slide', crop_size=crop_size, stride=(341, 683)
    ),  # two thirds of the crop, as on ADE20K
)
