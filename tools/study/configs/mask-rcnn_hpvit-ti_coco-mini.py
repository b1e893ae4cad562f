# The COCO recipe with HPViT-Ti on 210 images and COCO's 12 supercategories.
_base_ = './mask-rcnn_hpvit-ti_nuclei.py'

data_root = '{{$MMHPVIT_TEST_DATA:../shared}}/data/coco_mini/'
metainfo = dict(
    classes=(
        *('person', 'vehicle', 'outdoor', 'animal', 'accessory', 'sports'),
        *('kitchen', 'food', 'furniture', 'electronic', 'appliance', 'indoor'),
    )
)
scale = (384, 384)
model = dict(roi_head=dict(bbox_head=dict(num_classes=12), mask_head=dict(num_classes=12)))
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train_super.json',
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val_super.json',
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val_super.json', classwise=True)
test_evaluator = val_evaluator
