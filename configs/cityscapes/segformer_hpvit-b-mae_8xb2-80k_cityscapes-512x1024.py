# SegFormer's head (arXiv 2105.15203), 768 wide as in its larger models, with the schedule of the UPerNet here.
_base_ = [
    '../_base_/backbones/hpvit-b-mae.py',
    'mmseg::_base_/models/segformer_mit-b0.py',
    'mmseg::_base_/datasets/cityscapes.py',
    '../_base_/schedules/mae-adamw_80k.py',
    'mmseg::_base_/default_runtime.py',
]
crop_size = (512, 1024)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=_base_.vit,
    decode_head=dict(in_channels=[768, 768, 768, 768], channels=768, num_classes=19),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(341, 683)),
)
train_dataloader = dict(batch_size=2)
