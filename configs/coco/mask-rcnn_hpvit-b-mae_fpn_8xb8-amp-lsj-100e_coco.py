# Large-scale jitter 0.1 to 2.0 at 1024x1024 for 100 epochs: ViTDet (arXiv 2203.16527, appendix A.2).
_base_ = [
    '../_base_/models/mask-rcnn_hpvit-b-mae_fpn.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/schedules/vitdet-adamw_lsj-100e.py',
    'mmdet::_base_/default_runtime.py',
]
image_size = (1024, 1024)
# grid_spacing=2 suits these image sizes: docs/depths-and-layout.md.
model = dict(
    backbone=dict(grid_spacing=2),
    data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=image_size, pad_mask=True)]),
)
# A run that dies loses at most 2000 iterations.
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=2000, max_keep_ckpts=2, save_best='coco/segm_mAP')
)
log_processor = dict(by_epoch=False)
