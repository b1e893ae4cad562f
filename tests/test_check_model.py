# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import json
import shutil

import check_data
import check_model
import pytest
from launch import own_backbone
from mmengine.config import Config

from mmhpvit import TwoScaleViT

COCO = 'configs/coco/mask-rcnn_hpvit-b-mae_fpn_8xb2-amp-1x_coco.py'
OWN = dict(dataset=dict(type='CocoDataset', metainfo=dict(classes=('cat', 'dog'))))


def config(**options) -> Config:
    return Config(dict(default_scope='mmdet', model=dict(type='MaskRCNN'), train_dataloader=OWN) | options)


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
    ],
)
def test_heads_of_other_classes_than_the_data_are_refused(model, message):
    with pytest.raises(SystemExit, match=message) as stopped:
        check_model.check_num_classes(config(model=model))
    assert '\n' not in str(stopped.value)


@pytest.mark.parametrize(
    'model',
    [
        dict(roi_head=dict(bbox_head=[dict(num_classes=2)], mask_head=dict(num_classes=2))),
        dict(rpn_head=dict(num_classes=1), bbox_head=dict(num_classes=2)),
        dict(panoptic_head=dict(num_things_classes=2, num_stuff_classes=0)),
        dict(auxiliary_head=[dict(type='STDCHead', num_classes=2), dict(num_classes=2)]),
    ],
)
def test_heads_that_agree_with_the_data_pass(model):
    check_model.check_num_classes(config(model=model))


def test_classes_of_a_type_of_data_count_where_none_are_named():
    loader = dict(dataset=dict(type='RepeatDataset', dataset=dict(type='CityscapesDataset')))
    cfg = config(default_scope='mmseg', model=dict(type='EncoderDecoder'), train_dataloader=loader)
    check_model.check_library(cfg)
    cfg.model.decode_head = dict(num_classes=19)
    check_model.check_num_classes(cfg)
    cfg.model.decode_head.num_classes = 150
    with pytest.raises(
        SystemExit, match=r'expected 19, .*dataset\.dataset \(road, sidewalk, building, wall, \.\.\.'
    ):
        check_model.check_num_classes(cfg)


def test_parts_of_the_classes_that_heads_may_have_pass():
    """PanopticFPN's boxes are of things alone; without the class 0 of the maps one is gone."""
    loader = dict(dataset=dict(type='CocoPanopticDataset'))
    cfg = config(train_dataloader=loader, model=dict(type='PanopticFPN', bbox_head=dict(num_classes=80)))
    check_model.check_library(cfg)
    check_model.check_num_classes(cfg)
    cfg.model.bbox_head.num_classes = 91
    with pytest.raises(SystemExit, match='expected 133'):
        check_model.check_num_classes(cfg)
    cfg = config(model=dict(bbox_head=dict(num_classes=1)))
    cfg.train_dataloader.dataset.reduce_zero_label = True
    check_model.check_num_classes(cfg)


def test_data_that_tells_its_classes_by_files_passes():
    loader = dict(dataset=dict(type='BaseSegDataset'))
    cfg = config(default_scope='mmseg', model=dict(type='EncoderDecoder'), train_dataloader=loader)
    check_model.check_library(cfg)
    check_model.check_num_classes(cfg)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [('EncoderDecoder', 'is of mmseg'), ('MaskRCMN', 'mmdet has no such model')],
)
def test_models_of_another_library_are_refused(kind, message):
    with pytest.raises(SystemExit, match=message):
        check_model.check_library(config(model=dict(type=kind)))
    check_model.check_library(config(model=dict(type=f'mmseg.{kind}')))
    check_model.check_library(config())


def test_schedules_that_end_before_they_begin_are_refused():
    warm_up = dict(type='LinearLR', by_epoch=False, begin=0, end=1500)
    check_model.check_schedule(config(param_scheduler=[warm_up, dict(type='PolyLR', begin=1500, end=1600)]))
    check_model.check_schedule(config(param_scheduler=dict(type='PolyLR')))
    with pytest.raises(SystemExit, match=r'param_scheduler\.1 \(PolyLR\) begins at 1500 and ends at 80'):
        check_model.check_schedule(config(param_scheduler=[warm_up, dict(type='PolyLR', begin=1500, end=80)]))


@pytest.mark.parametrize(('iterations', 'warned'), [(600, True), (1000, False), (5000, False)])
def test_warm_up_as_long_as_the_training_is_said(iterations, warned, capsys):
    warm_up = dict(type='LinearLR', by_epoch=False, begin=0, end=500)
    check_model.warn_of_warm_up(config(param_scheduler=[warm_up, dict(type='MultiStepLR')]), iterations)
    said = capsys.readouterr().out
    assert ('rises for 500 iterations (param_scheduler.0.end)' in said) == warned
    assert ('param_scheduler.0.end=61' in said) == warned


def test_files_of_another_vit_are_refused_before_training(real_weights, tmp_path):
    def backbone(plain: str, checkpoint) -> dict:
        return dict(type='HPViT', plain=plain, init_cfg=dict(type='PlainViT', checkpoint=str(checkpoint)))

    for plain, checkpoint in (
        ('vit_tiny_patch16_224', real_weights),
        ('vit_small_patch16_224', 'https://nowhere/vit.pth'),
        ('vit_small_patch16_224', tmp_path / 'missing.pth'),
    ):
        check_model.check_plain_weights(config(model=dict(backbone=backbone(plain, checkpoint))))
    model = dict(backbone=backbone('vit_small_patch16_224', real_weights))
    with pytest.raises(SystemExit, match=r'init_cfg: checkpoint .* has width 192 \(the model has 384\)'):
        check_model.check_plain_weights(config(model=model))


def test_annotations_that_are_cut_off_are_named(tmp_path, shapes):
    shutil.copytree(shapes, tmp_path / 'data')
    (path,) = (tmp_path / 'data').rglob('*train*.json')
    dataset = dict(type='CocoDataset', ann_file=str(path), metainfo=dict(classes=('star',)))
    for text, message in (
        (path.read_text()[:-90], r'\(.*line 1'),
        (json.dumps(dict(images=[])), "no 'categories'"),
    ):
        path.write_text(text)
        check_data._categories.cache_clear()
        with pytest.raises(SystemExit, match=f"{path} is no whole file in COCO's format.*{message}"):
            check_data.check_data(config(train_dataloader=dict(dataset=dataset)), 'train_dataloader')


def test_backbones_by_name_or_class():
    """A config in pure Python has the class."""
    assert own_backbone('TwoScaleViT') is own_backbone(TwoScaleViT) is TwoScaleViT
    assert not any(map(own_backbone, ('ResNet', 'load_plain_weights', None, dict)))
