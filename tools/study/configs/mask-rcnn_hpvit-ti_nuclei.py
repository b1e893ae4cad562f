# The COCO recipe with HPViT-Ti on microscopy images (one class, up to 151 objects an image).
_base_ = '../../../configs/coco/mask-rcnn_hpvit-b-mae_fpn_8xb2-amp-1x_coco.py'

data_root = '{{$MMHPVIT_TEST_DATA:../shared}}/data/nuclei/'
metainfo = dict(classes=('nucleus',))
scale = (320, 320)
model = dict(
    # AugReg weights were trained with mean and standard deviation 0.5.
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(
        plain='vit_tiny_patch16_224',
        drop_path_rate=0.0,
        init_cfg=dict(
            checkpoint='{{$MMHPVIT_TEST_DATA:../shared}}/weights/'
            'vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors'
        ),
    ),
    neck=dict(in_channels=[192, 192, 192, 192], out_channels=96),
    rpn_head=dict(in_channels=96, feat_channels=96, num_convs=1),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=96),
        mask_roi_extractor=dict(out_channels=96),
        bbox_head=dict(
            _delete_=True,
            type='Shared2FCBBoxHead',
            in_channels=96,
            fc_out_channels=256,
            num_classes=1,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
        ),
        mask_head=dict(in_channels=96, conv_out_channels=96, num_convs=2, num_classes=1),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=300), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(max_per_img=300), rcnn=dict(max_per_img=200)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/val/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=data_root + 'annotations/instances_val.json',
    proposal_nums=(1, 100, 200),
    metric_items=['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l'],
)
test_evaluator = val_evaluator

max_iters = 600
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
optim_wrapper = dict(
    type='OptimWrapper',
    paramwise_cfg=dict(decay_rate=0.75),
    optimizer=dict(lr=5e-4),
    clip_grad=dict(max_norm=1.0),
)
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=1), logger=dict(interval=20)
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
