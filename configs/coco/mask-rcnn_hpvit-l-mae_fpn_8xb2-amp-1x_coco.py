_base_ = './mask-rcnn_hpvit-b-mae_fpn_8xb2-amp-1x_coco.py'
model = dict(
    # Drop path and layer decay of L: ViTDet, appendix A.2, for its longer schedule.
    # Keeping them here, and recomputing activations to save memory: ours.
    backbone=dict(plain='vit_large_patch16_224.mae', drop_path_rate=0.4, with_cp=True),
    neck=dict(in_channels=[1024, 1024, 1024, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
