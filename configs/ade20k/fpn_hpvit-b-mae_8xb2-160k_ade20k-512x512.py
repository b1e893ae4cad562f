# Semantic FPN (arXiv 1901.02446) as mmseg has it, with the schedule of the UPerNet here.
_base_ = [
    '../_base_/backbones/hpvit-b-mae.py',
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../_base_/schedules/mae-adamw_160k.py',
    'mmseg::_base_/default_runtime.py',
]
crop_size = (512, 512)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=crop_size),
    backbone=_base_.vit,
    neck=dict(in_channels=[768, 768, 768, 768]),
    decode_head=dict(num_classes=150),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(341, 341)),
)
train_dataloader = dict(batch_size=2)
