# UPerNet on HPViT-B from MAE weights. Head widths equal to the ViT's: BEiT and MAE on ADE20K.
_base_ = ['../backbones/hpvit-b-mae.py', 'mmseg::_base_/models/upernet_swin.py']

model = dict(
    pretrained=None,
    backbone=_base_.vit,
    decode_head=dict(in_channels=[768, 768, 768, 768], channels=768),
    auxiliary_head=dict(in_channels=768),
)
