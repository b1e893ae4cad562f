# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import json
import shutil

import check_data
import check_model
import pytest
import torch
from launch import check_operators, own_backbone
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
    with pytest.raises(SystemExit, match=message) as stopped:
        check_model.check_num_classes(config(model=model))
    assert '\n' not in str(stopped.value)


@pytest.mark.parametrize(
    'model',
    [
        dict(roi_head=dict(bbox_head=[dict(num_classes=2)], mask_head=dict(num_classes=2))),
        dict(rpn_head=dict(num_classes=1), bbox_head=dict(num_classes=2)),
        dict(panoptic_head=dict(num_things_classes=2, num_stuff_classes=0)),
        dict(bbox_head=dict(num_classes=2, loss_cls=dict(use_sigmoid=True, class_weight=[1.0, 2.0]))),
        dict(auxiliary_head=[dict(type='STDCHead', num_classes=2), dict(num_classes=2)]),
        dict(bbox_head=dict(type='GroundingDINOHead', num_classes=256)),
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


def test_segmenters_of_one_class_are_refused():
    data = dict(dataset=dict(type='BaseSegDataset', metainfo=dict(classes=('crack',))))
    softmax, sigmoid = (dict(type='CrossEntropyLoss', use_sigmoid=value) for value in (False, True))
    for loss in (softmax, [dict(type='DiceLoss'), softmax]):
        head = dict(num_classes=1, loss_decode=loss)
        cfg = config(default_scope='mmseg', model=dict(decode_head=head), train_dataloader=data)
        with pytest.raises(
            SystemExit, match=r'decode_head\.num_classes=1: .*background .* have num_classes=2'
        ):
            check_model.check_num_classes(cfg)
    for head in (dict(num_classes=1, loss_decode=sigmoid), dict(num_classes=1, loss_cls=softmax)):
        cfg = config(default_scope='mmseg', model=dict(decode_head=head), train_dataloader=data)
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


def decayed(lr: float, **scheduler) -> Config:
    optim_wrapper = dict(optimizer=dict(type='AdamW', lr=lr), paramwise_cfg=dict(decay_rate=0.65))
    model = dict(backbone=dict(type='HPViT', plain='vit_tiny_patch16_224'))
    return config(
        model=model, optim_wrapper=optim_wrapper, param_scheduler=[dict(type='PolyLR', **scheduler)]
    )


def test_rates_that_do_not_fall_are_refused(capsys):
    with pytest.raises(SystemExit, match=r'eta_min=0\.0001: expected less than .*lr=0\.0001'):
        check_model.check_last_rates(decayed(1e-4, eta_min=1e-4))
    assert not capsys.readouterr().out
    check_model.check_last_rates(decayed(2e-4, eta_min=1e-4))
    assert (
        'WARNING: param_scheduler.0.eta_min=0.0001 is more than the first layers' in capsys.readouterr().out
    )
    # As mmseg's own configs, and as the schedules here.
    sgd = dict(optimizer=dict(type='SGD', lr=0.01))
    check_model.check_last_rates(
        config(optim_wrapper=sgd, param_scheduler=[dict(type='PolyLR', eta_min=1e-4)])
    )
    for fine in (dict(), dict(eta_min=0.0), dict(eta_min=1e-8)):
        check_model.check_last_rates(decayed(1e-4, **fine))
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ('evaluator', 'best', 'message'),
    [
        (
            dict(type='CocoMetric', metric='bbox'),
            'coco/segm_mAP',
            r'gives coco/bbox_mAP, .*save_best=coco/bbox_mAP$',
        ),
        (dict(type='CocoMetric', metric=['bbox', 'segm']), 'coco/segm_mAP_50', None),
        (dict(type='CocoMetric', metric='proposal'), 'coco/AR@100', None),
        (dict(type='VOCMetric', metric='mAP'), 'coco/bbox_mAP', 'gives pascal_voc/mAP'),
        (dict(type='VOCMetric', metric='mAP'), 'pascal_voc/mAP', None),
        (dict(type='CocoMetric', metric='proposal_fast'), 'coco/AR@1000', None),
        (dict(type='CocoMetric', classwise=True), 'coco/person_precision', None),
        (dict(type='CocoMetric', metric_items=['AR@100', 'mAP']), 'coco/bbox_AR@100', None),
        (dict(type='VOCMetric', iou_thrs=[0.5, 0.75]), 'pascal_voc/AP75', None),
        (dict(type='IoUMetric', iou_metrics='mIoU'), 'mIoU', None),
        (dict(type='IoUMetric', iou_metrics=['mDice']), 'mIoU', 'gives mDice, mAcc, aAcc'),
        (dict(type='IoUMetric', iou_metrics=['mFscore', 'mIoU']), 'mPrecision', None),
        ([dict(type='IoUMetric'), dict(type='OwnMetric')], 'own', None),
        (dict(type='IoUMetric'), 'auto', None),
    ],
)
def test_best_checkpoint_by_a_metric_that_is_not_measured_is_refused(evaluator, best, message):
    cfg = config(default_hooks=dict(checkpoint=dict(save_best=best)), val_cfg=dict(), val_evaluator=evaluator)
    if message is None:
        check_model.check_save_best(cfg)
    else:
        with pytest.raises(SystemExit, match=message):
            check_model.check_save_best(cfg)
    # A training without validation looks at no metric.
    check_model.check_save_best(Config(dict(cfg, val_cfg=None)))


@pytest.mark.parametrize(('processes', 'said'), [(1, True), (8, False)])
def test_schedule_in_iterations_of_another_total_is_said(processes, said, capsys):
    cfg = config(train_cfg=dict(max_iters=1000), auto_scale_lr=dict(base_batch_size=64))
    cfg.train_dataloader.batch_size = 8
    check_model.warn_of_length(cfg, processes)
    text = capsys.readouterr().out
    assert ('1000 iterations of 8 images are 0.125 times' in text and 'max_iters=8000' in text) == said
    cfg.train_cfg = dict(by_epoch=True, max_epochs=12)
    check_model.warn_of_length(cfg, processes)
    assert capsys.readouterr().out == ''


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
        with pytest.raises(SystemExit, match=rf'mmcv here was compiled without CUDA.*\({needed}'):
            check_operators(model)
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: '12.1')
    check_operators(model)


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
