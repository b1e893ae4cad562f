# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from small_configs import config

from mmhpvit import TwoScaleViT
from mmhpvit.preflight.errors import ConfigError
from mmhpvit.preflight.model import (
    check_backbone,
    check_num_classes,
    check_operators,
    check_preprocessor,
    own_backbone,
)
from mmhpvit.preflight.weights import warn_of_normalisation


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(roi_head=dict(bbox_head=dict(num_classes=80))), r'model\.roi_head\.bbox_head\.num_classes=80'),
        (
            dict(roi_head=dict(bbox_head=[dict(num_classes=2), dict(num_classes=3)])),
            r'bbox_head\.1\.num_class',
        ),
        (dict(roi_head=dict(mask_head=dict(num_classes=1))), r'expected 2, the classes of .* \(cat, dog\)'),
        (dict(panoptic_head=dict(num_things_classes=2, num_stuff_classes=53)), r'num_things_classes=2'),
        (
            dict(panoptic_fusion_head=dict(num_things_classes=80, num_stuff_classes=0)),
            r'panoptic_fusion_head\.num_things_classes=80: expected 2',
        ),
        (
            dict(panoptic_head=dict(num_things_classes=2, loss_cls=dict(class_weight=[1.0] * 80 + [0.1]))),
            r'class_weight has 81 weights: expected 3, .* as \[1\.0\] \* 2 \+ \[0\.1\]',
        ),
    ],
)
def test_heads_of_other_classes_than_the_data_are_refused(model, message):
    with pytest.raises(ConfigError, match=message) as stopped:
        check_num_classes(config(model=model))
    assert '\n' not in str(stopped.value)


@pytest.mark.parametrize(
    'model',
    [
        dict(roi_head=dict(bbox_head=[dict(num_classes=2)], mask_head=dict(num_classes=2))),
        dict(rpn_head=dict(num_classes=1), bbox_head=dict(num_classes=2)),
        dict(panoptic_head=dict(num_things_classes=2, num_stuff_classes=0)),
        dict(bbox_head=dict(num_classes=2, loss_cls=dict(use_sigmoid=True, class_weight=[1.0, 2.0]))),
        dict(panoptic_head=dict(num_classes=2, loss_cls=dict(class_weight=[1.0, 1.0, 0.1]))),
        dict(auxiliary_head=[dict(type='STDCHead', num_classes=2), dict(num_classes=2)]),
        dict(bbox_head=dict(type='GroundingDINOHead', num_classes=256)),
    ],
)
def test_heads_that_agree_with_the_data_pass(model):
    check_num_classes(config(model=model))


def test_things_of_panoptic_data_are_a_part_of_its_classes():
    names = dict(classes=('cat', 'dog', 'road'), thing_classes=('cat', 'dog'), stuff_classes=('road',))
    loader = dict(dataset=dict(type='CocoPanopticDataset', metainfo=names))
    for classes, fits in ((2, True), (3, True), (1, False)):
        model = dict(
            roi_head=dict(bbox_head=dict(num_classes=classes)),
            panoptic_fusion_head=dict(num_things_classes=2, num_stuff_classes=1),
        )
        cfg = config(model=model, train_dataloader=loader)
        if fits:
            check_num_classes(cfg)
            continue
        with pytest.raises(ConfigError, match=r'bbox_head\.num_classes=1: expected 3'):
            check_num_classes(cfg)


def test_classes_of_a_type_of_data_count_where_none_are_named():
    loader = dict(dataset=dict(type='RepeatDataset', dataset=dict(type='CityscapesDataset')))
    cfg = config(default_scope='mmseg', model=dict(type='EncoderDecoder'), train_dataloader=loader)
    cfg.model.decode_head = dict(num_classes=19)
    check_num_classes(cfg)
    cfg.model.decode_head.num_classes = 150
    with pytest.raises(
        ConfigError, match=r'expected 19, .*dataset\.dataset \(road, sidewalk, building, wall, \.\.\.'
    ):
        check_num_classes(cfg)


def test_segmenters_of_one_class_are_refused():
    data = dict(dataset=dict(type='BaseSegDataset', metainfo=dict(classes=('crack',))))
    softmax, sigmoid = (dict(type='CrossEntropyLoss', use_sigmoid=value) for value in (False, True))
    two = dict(num_classes=2, loss_decode=softmax)
    for loss in (softmax, [dict(type='DiceLoss'), softmax]):
        head = dict(num_classes=1, loss_decode=loss)
        cfg = config(default_scope='mmseg', model=dict(decode_head=head), train_dataloader=data)
        with pytest.raises(
            ConfigError, match=r'decode_head\.num_classes=1: .*background .* set num_classes=2'
        ):
            check_num_classes(cfg)
    others = dict(num_classes=1, loss_decode=sigmoid), dict(num_classes=1, loss_cls=softmax)
    for head, classes in (*((head, ('crack',)) for head in others), (two, ('crack', 'background'))):
        data['dataset']['metainfo'] = dict(classes=classes)
        cfg = config(default_scope='mmseg', model=dict(decode_head=head), train_dataloader=data)
        check_num_classes(cfg)


def test_parts_of_the_classes_that_heads_may_have_pass():
    """PanopticFPN's boxes are of things alone; without the class 0 of the maps one is gone."""
    loader = dict(dataset=dict(type='CocoPanopticDataset'))
    cfg = config(train_dataloader=loader, model=dict(type='PanopticFPN', bbox_head=dict(num_classes=80)))
    check_num_classes(cfg)
    cfg.model.bbox_head.num_classes = 91
    with pytest.raises(ConfigError, match='expected 133'):
        check_num_classes(cfg)
    cfg = config(model=dict(bbox_head=dict(num_classes=1)))
    cfg.train_dataloader.dataset.reduce_zero_label = True
    check_num_classes(cfg)


def test_data_that_tells_its_classes_by_files_passes():
    loader = dict(dataset=dict(type='BaseSegDataset'))
    check_num_classes(
        config(default_scope='mmseg', model=dict(type='EncoderDecoder'), train_dataloader=loader)
    )


@pytest.mark.parametrize(
    ('model', 'needed'),
    [
        (dict(type='MaskRCNN', roi_head=dict(roi_layer=dict(type='RoIAlign'))), 'RoIAlign'),
        (dict(type='mmdet.RetinaNet', test_cfg=dict(nms=dict(type='nms'))), 'nms'),
        (
            dict(type='EncoderDecoder', decode_head=dict(p=dict(type='mmdet.MSDeformAttnPixelDecoder'))),
            'MSDeform',
        ),
        (dict(type='DINO'), 'DINO'),
        (dict(type='DETR', bbox_head=dict(type='DETRHead')), None),
        (dict(type='EncoderDecoder', decode_head=[dict(type='UPerHead')]), None),
    ],
)
def test_operators_that_mmcv_was_compiled_without_are_missed_before_training(model, needed, monkeypatch):
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: 'not available')
    check_operators(model)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    if needed is None:
        check_operators(model)
    else:
        with pytest.raises(ConfigError, match=rf'mmcv here was compiled without CUDA.*\({needed}'):
            check_operators(model)
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: '12.1')
    check_operators(model)


TI = dict(type='HPViT', plain='vit_tiny_patch16_224')


class OwnNeck:
    """What its in_channels means is its own."""


WIDTHS = [256, 512, 1024, 2048]


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (
            dict(neck=dict(in_channels=WIDTHS)),
            r'model\.neck\.in_channels=\[256, .*expected \[192, 192, 192, 192\]',
        ),
        (
            dict(neck=dict(in_channels=[192] * 3)),
            r'neck\.in_channels=\[192, 192, 192\]: expected \[192, 192, 192, 192',
        ),
        (dict(neck=[dict(in_channels=WIDTHS), dict(in_channels=256)]), r'model\.neck\.0\.in_channels'),
        (
            dict(backbone=TI | dict(out_indices=(1, 2, 3)), neck=dict(in_channels=[192] * 4)),
            r'expected \[192, 192, 192\]',
        ),
        (
            dict(backbone=TI | dict(type='PlainViTPyramid', out_indices=(2,)), neck=dict(in_channels=[768])),
            r'expected \[192\]',
        ),
        (
            dict(decode_head=dict(in_channels=WIDTHS, in_index=[0, 1, 2, 3])),
            r'decode_head\.in_channels=\[256, 512',
        ),
        (
            dict(
                decode_head=dict(in_channels=[192] * 4), auxiliary_head=[dict(in_channels=1024, in_index=2)]
            ),
            r'auxiliary_head\.0\.in_channels=1024: expected 192, the width of vit_tiny_patch16_224',
        ),
        (dict(neck=dict(type='FPN', in_channels=WIDTHS)), r'model\.neck\.in_channels=\[256'),
        (dict(panoptic_head=dict(in_channels=WIDTHS)), r'panoptic_head\.in_channels'),
    ],
)
def test_maps_of_another_width_than_the_vits_are_refused(model, message):
    with pytest.raises(ConfigError, match=message) as stopped:
        check_backbone(config(model=dict(backbone=TI) | model))
    assert '\n' not in str(stopped.value)


@pytest.mark.parametrize(
    'model',
    [
        dict(neck=dict(in_channels=[192] * 4), bbox_head=dict(in_channels=256)),
        dict(neck=[dict(in_channels=(192,) * 4), dict(in_channels=256)], decode_head=dict(in_channels=256)),
        dict(neck=dict(type='GlobalAveragePooling'), head=dict(in_channels=768)),
        dict(decode_head=dict(in_channels=[192, 192], in_index=[1, 3]), auxiliary_head=dict(in_channels=192)),
        dict(backbone=TI | dict(out_indices=(3,)), head=dict(in_channels=192)),
        dict(rpn_head=dict(in_channels=256)),
        dict(neck=dict(type=OwnNeck, in_channels=[96] * 4)),
    ],
)
def test_maps_of_the_vits_width_pass(model):
    check_backbone(config(model=dict(backbone=TI) | model))


def test_weights_of_the_backbone_before_are_refused():
    """mmseg's models have them beside the backbone, and hand them on to it."""
    backbone = dict(type='HPViT', plain='tiny_patch16')
    cfg = config(model=dict(type='EncoderDecoder', pretrained='open-mmlab://resnet50_v1c', backbone=backbone))
    cfg.default_scope = 'mmseg'
    with pytest.raises(
        ConfigError, match=r"pretrained='open-mmlab://resnet50_v1c' .*set model\.pretrained=None"
    ):
        check_backbone(cfg)
    cfg.model.pretrained = None
    check_backbone(cfg)
    # mmpretrain's classifiers load the whole model by that name.
    check_backbone(config(model=dict(type='ImageClassifier', pretrained='classifier.pth', backbone=backbone)))


def test_backbones_by_name_or_class():
    """A config in pure Python has the class."""
    assert own_backbone('TwoScaleViT') is own_backbone(TwoScaleViT) is TwoScaleViT
    assert own_backbone('mmhpvit.backbones.two_scale_vit.TwoScaleViT') is TwoScaleViT
    assert not any(map(own_backbone, ('ResNet', 'load_plain_weights', None, dict)))


def test_backbones_of_others_are_left_to_them():
    for backbone in (None, dict(type='ResNet', depht=50)):
        check_backbone(config(model=dict(type='MaskRCNN', backbone=backbone)))
    for options, message in (
        (dict(depht=1), "unexpected keyword argument 'depht'; to replace .*_delete_=True"),
        (dict(depths=(3, 3, 3, 2)), r'model\.backbone: depths=\(3, 3, 3, 2\) sum to 11'),
    ):
        with pytest.raises(ConfigError, match=message):
            check_backbone(config(model=dict(backbone=TI | options)))


RGB = [127.5] * 3


@pytest.mark.parametrize(
    ('channels', 'given', 'message'),
    [
        (4, dict(mean=RGB, std=RGB), r'mean has 3 values and model\.backbone\.in_channels is 4'),
        (1, dict(mean=RGB, std=RGB), r'mean has 3 values and model\.backbone\.in_channels is 1'),
        (
            3,
            dict(mean=[1.0] * 4, std=[1.0] * 4),
            r'mean has 4 values and .* is 3: expected one value for each',
        ),
        (4, dict(mean=[1.0] * 4, std=RGB), r'data_preprocessor\.std has 3 values'),
        (
            4,
            dict(mean=[1.0] * 4, std=[1.0] * 4, bgr_to_rgb=True),
            r'bgr_to_rgb=True .* is 4: set it to False',
        ),
        (1, dict(mean=[1.0], std=[1.0], rgb_to_bgr=True), r'rgb_to_bgr=True'),
        (
            4,
            dict(type='DetDataPreprocessor', mean=[1.0] * 4, std=[1.0] * 4),
            r'takes 1 or 3 values .*Normalize',
        ),
    ],
)
def test_normalisation_of_other_channels_is_refused(channels, given, message):
    backbone = dict(type='HPViT', plain='vit_tiny_patch16_224', in_channels=channels)
    for cfg in (
        config(model=dict(backbone=backbone, data_preprocessor=given)),
        config(model=dict(backbone=backbone), data_preprocessor=given),
    ):
        with pytest.raises(ConfigError, match=message) as stopped:
            check_preprocessor(cfg)
        assert '\n' not in str(stopped.value)
    check_preprocessor(config(model=dict(backbone=dict(type='ResNet'), data_preprocessor=given)))


@pytest.mark.parametrize(
    ('scope', 'channels', 'given'),
    [
        ('mmdet', 3, dict(type='DetDataPreprocessor', mean=RGB, std=RGB, bgr_to_rgb=True)),
        ('mmdet', 4, dict(type='DetDataPreprocessor', mean=[1.0], std=[1.0])),
        ('mmdet', 4, dict(type='DetDataPreprocessor', mean=None, std=None, bgr_to_rgb=False)),
        ('mmseg', 4, dict(type='SegDataPreProcessor', mean=[1.0] * 4, std=[1.0] * 4, bgr_to_rgb=False)),
        ('mmseg', 1, dict(type='SegDataPreProcessor', mean=[1.0], std=[1.0])),
        ('mmdet', 4, {}),
    ],
)
def test_normalisation_that_fits_the_channels_passes(scope, channels, given, warned):
    backbone = dict(type='HPViT', plain='vit_tiny_patch16_224', in_channels=channels)
    cfg = config(default_scope=scope, model=dict(backbone=backbone, data_preprocessor=given))
    init_default_scope(scope)
    check_backbone(cfg)
    check_preprocessor(cfg)
    if given and channels != 3:
        MODELS.build(given)
        warn_of_normalisation(cfg)
        assert warned == []  # what the weights expect are values for RGB
