# mmdet's Mask2Former for instances (arXiv 2112.01527): its learning rate, clipping, weight decay and schedule;
# the fixed factor for the backbone becomes layer-wise decay.
_base_ = [
    '../_base_/backbones/hpvit-b-mae.py',
    '../_base_/optimizers/mask2former-adamw.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
]
model = dict(backbone=_base_.vit, panoptic_head=dict(in_channels=[768, 768, 768, 768]))
optim_wrapper = dict(_base_.mask2former_adamw, _delete_=True)
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
custom_hooks = [dict(type='SkipTrainedData')]
