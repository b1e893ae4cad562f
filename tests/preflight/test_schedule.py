# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import re
from types import SimpleNamespace

import mmengine.optim  # noqa: F401  registers the schedulers
import pytest
import torch
from mmengine.config import Config
from small_configs import config

from mmhpvit.preflight.errors import ConfigError
from mmhpvit.preflight.schedule import (
    check_amp,
    check_rates,
    check_save_best,
    learning_rates,
    warn_of_accumulation,
    warn_of_end,
    warn_of_length,
    warn_of_sgd,
    warn_of_warm_up,
)


@pytest.mark.parametrize(
    ('scheduler', 'said'),
    [
        (
            dict(type='PolyLR', by_epoch=False, end=80),
            'falls until 80 iterations .param_scheduler.1.end.*has 100',
        ),
        (
            dict(type='PolyLR', by_epoch=False, end=160),
            'falls until 160 iterations .* --cfg-options .*end=100',
        ),
        (dict(type='mmengine.CosineAnnealingLR', end=12), 'falls until 12 epochs .* has 10: '),
        (dict(type='PolyLR', by_epoch=False, end=100), None),
        (dict(type='CosineAnnealingLR', end=10), None),
        (dict(type='CosineAnnealingLR', end=12, T_max=12), None),
        (dict(type='PolyLR', by_epoch=False), None),
        (dict(type='MultiStepLR', by_epoch=False, end=160), None),
    ],
)
def test_rates_that_fall_for_longer_or_shorter_than_the_training_are_said(scheduler, said, warned):
    cfg = config(
        param_scheduler=[dict(type='LinearLR'), scheduler, dict(type='CosineAnnealingMomentum', end=1)]
    )
    cfg.train_cfg = dict(max_epochs=10)
    warn_of_end(cfg, 100)
    assert bool(warned) == bool(said)
    assert not said or re.search(said, warned[0])
    # How many epochs a training of iterations has is not known.
    cfg.train_cfg = dict(max_iters=100)
    warned.clear()
    warn_of_end(cfg, 100)
    assert bool(warned) == (bool(said) and scheduler.get('by_epoch') is False)


LOOP = SimpleNamespace(max_iters=100, max_epochs=1, dataloader=range(10))


def decayed(lr: float, *schedulers: dict, **scheduler) -> Config:
    optim_wrapper = dict(optimizer=dict(type='AdamW', lr=lr), paramwise_cfg=dict(decay_rate=0.65))
    model = dict(backbone=dict(type='HPViT', plain='vit_tiny_patch16_224'))
    scheduler = dict(type='PolyLR', by_epoch=False) | scheduler
    return config(model=model, optim_wrapper=optim_wrapper, param_scheduler=list(schedulers) or [scheduler])


def check(cfg: Config) -> None:
    check_rates(cfg, cfg.optim_wrapper.optimizer.lr, LOOP)


def test_rates_that_do_not_fall_are_refused(warned):
    for floor in (1e-4, 2e-4):
        with pytest.raises(ConfigError, match=rf'eta_min={floor:g}: expected less than .*lr=0\.0001'):
            check(decayed(1e-4, eta_min=floor))
    check(decayed(2e-4, eta_min=1e-4))
    assert len(warned) == 1
    assert 'param_scheduler.0.eta_min=0.0001 is more than the first layers' in warned.pop()
    # As mmseg's own configs, and as the schedules here.
    sgd = dict(optimizer=dict(type='SGD', lr=0.01))
    fine = [decayed(1e-4, **options) for options in (dict(), dict(eta_min=0.0), dict(eta_min=1e-8))]
    for cfg in (config(optim_wrapper=sgd, param_scheduler=[dict(type='PolyLR', eta_min=1e-4)]), *fine):
        check(cfg)
    assert not warned


@pytest.mark.parametrize('by_epoch', [True, False])
def test_scheduler_that_sets_one_rate_is_refused(by_epoch, warned):
    loop = SimpleNamespace(max_iters=100, max_epochs=10, dataloader=range(10))
    one_cycle = dict(type='OneCycleLR', eta_max=1e-3, by_epoch=by_epoch)
    if by_epoch:
        one_cycle['convert_to_iter_based'] = True
    cfg = decayed(1e-3, one_cycle)
    with pytest.raises(ConfigError, match=r'one learning rate \(0\.001\).*decay_rate=0\.65.*\(OneCycleLR, '):
        check_rates(cfg, 1e-3, loop)
    cfg.optim_wrapper.paramwise_cfg.decay_rate = 1.0
    check_rates(cfg, 1e-3, loop)
    for kept in ('ConstantLR', 'CosineAnnealingLR', 'ReduceOnPlateauLR'):
        check_rates(decayed(1e-3, dict(type=kept, by_epoch=by_epoch)), 1e-3, loop)
    assert not warned


def test_schedule_is_run_as_a_training_would():
    loop = SimpleNamespace(max_iters=12, max_epochs=3, dataloader=range(4))
    warm_up = dict(type='LinearLR', by_epoch=False, start_factor=0.5, end=3)
    steps = dict(type='MultiStepLR', milestones=[1, 2], gamma=0.1)
    momentum = dict(type='CosineAnnealingMomentum')
    cfg = config(param_scheduler=[warm_up, steps, momentum])
    _, found = learning_rates(cfg, [1.0, 0.1], loop, 12)
    expected = [0.5, 0.75, *[1.0] * 2, *[0.1] * 4, *[0.01] * 5]
    assert [head for head, _ in found] == pytest.approx(expected)
    assert [first for _, first in found] == pytest.approx([rate / 10 for rate in expected])
    # A loop of iterations has no epochs, and a schedule of epochs can be made one of iterations.
    loop.max_epochs = 1
    assert learning_rates(config(param_scheduler=steps), [1.0], loop, 11)[1] == [[1.0]] * 12
    steps['convert_to_iter_based'] = True
    steps['end'] = 3
    found = learning_rates(config(param_scheduler=steps), [1.0], loop, 11)[1]
    assert [rate for (rate,) in found] == pytest.approx([*[1.0] * 4, *[0.1] * 4, *[0.01] * 4])


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
        check_save_best(cfg)
    else:
        with pytest.raises(ConfigError, match=message):
            check_save_best(cfg)
    # A training without validation looks at no metric.
    check_save_best(Config(dict(cfg, val_cfg=None)))


@pytest.mark.parametrize(('processes', 'said'), [(1, True), (8, False)])
def test_schedule_in_iterations_of_another_total_is_said(processes, said, warned):
    cfg = config(train_cfg=dict(max_iters=1000), auto_scale_lr=dict(enable=True, base_batch_size=64))
    cfg.train_dataloader.batch_size = 8
    warn_of_length(cfg, processes)
    text = ''.join(warned)
    assert ('1000 iterations of 8 images are 0.125 times' in text and 'max_iters=8000' in text) == said
    warned.clear()
    cfg.auto_scale_lr.enable = False
    warn_of_length(cfg, processes)
    cfg.auto_scale_lr.enable, cfg.train_cfg = True, dict(by_epoch=True, max_epochs=12)
    warn_of_length(cfg, processes)
    assert not warned


@pytest.mark.parametrize(('batch', 'steps', 'said'), [(2, 8, True), (16, 2, True), (16, 1, False)])
def test_accumulated_gradients_count_in_the_batch(batch, steps, said, warned):
    cfg = config(train_cfg=dict(max_iters=1000), auto_scale_lr=dict(enable=True, base_batch_size=16))
    cfg.train_dataloader.batch_size = batch
    cfg.optim_wrapper = dict(accumulative_counts=steps)
    warn_of_length(cfg, 1)
    # How many images a training has does not depend on how many make a step.
    assert (
        ('1000 iterations of 2 images, 8 of which make a step,' in ''.join(warned))
        == bool(warned)
        == (batch == 2)
    )
    warned.clear()
    warn_of_accumulation(cfg)
    assert bool(warned) == said
    assert not said or f'base_batch_size={16 // steps}' in warned.pop()
    cfg.auto_scale_lr.enable = False
    warn_of_accumulation(cfg)
    assert not warned


def test_sgd_for_a_vit_is_said(warned):
    cfg = decayed(1e-4)
    warn_of_sgd(cfg)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.01)
    cfg.model.backbone.type = 'ResNet'
    warn_of_sgd(cfg)
    assert not warned
    cfg.model.backbone.type = 'HPViT'
    warn_of_sgd(cfg)
    assert "optimizer.type='SGD' is for ResNets" in warned.pop()


@pytest.mark.parametrize(('iterations', 'said'), [(600, True), (1000, False), (5000, False)])
def test_warm_up_as_long_as_the_training_is_said(iterations, said, warned):
    warm_up = dict(type='LinearLR', by_epoch=False, begin=0, end=500)
    warn_of_warm_up(config(param_scheduler=[warm_up, dict(type='MultiStepLR')]), iterations)
    assert ('rises for 500 iterations (param_scheduler.0.end)' in ''.join(warned)) == said
    assert ('param_scheduler.0.end=61' in ''.join(warned)) == said


def test_mixed_precision_needs_a_gpu(monkeypatch):
    amp, plain = (config(optim_wrapper=dict(type=kind)) for kind in ('AmpOptimWrapper', 'OptimWrapper'))
    check_amp(plain)
    with pytest.raises(ConfigError, match=r"type='AmpOptimWrapper', which needs a GPU.*type=OptimWrapper$"):
        check_amp(amp)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for cfg in (amp, plain):
        check_amp(cfg)


def test_floors_that_fall_short_of_no_rate_pass(warned):
    """Of other backbones, without layer-wise decay, and where the rate is scaled above it."""
    for change in (
        {'model.backbone.type': 'ResNet'},
        {'optim_wrapper.optimizer.lr': None},
        {'optim_wrapper.paramwise_cfg.decay_rate': None},
    ):
        cfg = decayed(1e-4, eta_min=1e-4)
        cfg.merge_from_dict(change)
        check(cfg)
    assert not warned
    check_rates(decayed(1e-4, eta_min=1e-4), 4e-4, LOOP)
    assert 'param_scheduler.0.eta_min=0.0001' in warned.pop()


@pytest.mark.parametrize('hooks', [{}, dict(checkpoint=dict(interval=1))])
def test_no_best_checkpoint_asks_for_no_metric(hooks):
    check_save_best(config(default_hooks=hooks, val_cfg=dict(), val_evaluator=dict(type='CocoMetric')))
    best = dict(checkpoint=dict(save_best='mIoU'))
    check_save_best(config(default_hooks=best, val_cfg=dict(), val_evaluator=None))


def test_warnings_are_those_of_the_first_process(monkeypatch, warned):
    cfg = config(train_cfg=dict(max_iters=1000), auto_scale_lr=dict(enable=True, base_batch_size=64))
    cfg.train_dataloader.batch_size = 8
    cfg.param_scheduler = [dict(type='LinearLR', by_epoch=False, begin=0, end=900)]
    rising = decayed(2e-4, eta_min=1e-4)
    for rank, said in (('1', 0), ('0', 3)):
        monkeypatch.setenv('LOCAL_RANK', rank)
        warn_of_length(cfg, 1)
        warn_of_warm_up(cfg, 1000)
        check(rising)
        assert len(warned) == said
    # What falls is no warm-up.
    warn_of_warm_up(config(param_scheduler=dict(type='PolyLR', by_epoch=False, end=900)), 1000)
    assert len(warned) == 3
