# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The study in small, and the parts that its figures rest on."""

import fcntl
import json
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from bench.frozen import frozen
from bench.labels import open_split
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmseg.evaluation import IoUMetric
from study.backbones import UpsampledPlainViT
from study.bootstrap import compare, miou
from study.finetune import (
    BACKBONES,
    CUSTOM_KEYS,
    RUNS,
    TRAINED,
    WEIGHTS,
    Run,
    backbone_of,
    best_rate,
    finetuned,
    last_metrics,
    train,
)
from study.long import trainings
from study.metrics import PerImageIoU
from study.probe import Images
from study.report import Results, by_training, frozen_table, read_results, rows_of, trained_table
from study.run import FROZEN, finetune, report
from study.run import frozen as probe_all
from tool_runs import ROOT, run
from torch import nn

from mmhpvit import TwoScaleViT, load_plain_weights

TI = 'vit_tiny_patch16_224'


def test_enlarged_plain_vit_has_the_maps_of_a_pyramid_and_learns():
    backbone = UpsampledPlainViT('test_vit')
    levels = backbone(torch.randn(2, 3, 64, 96))
    assert [level.shape for level in levels] == [(2, 64, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    sum(level.square().sum() for level in levels).backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]


@torch.no_grad()
def test_probed_backbones_have_the_trained_ones_maps(real_weights):
    x = torch.randn(1, 3, 64, 96)
    backbone = TwoScaleViT(TI).eval()
    load_plain_weights(backbone, real_weights)
    expected = backbone(x)
    for found, level in zip(frozen(f'two-scale:{TI}', real_weights)(x), expected, strict=True):
        torch.testing.assert_close(found, level)
    # The last map of timm's own ViT is that of TwoScaleViT at 1/16.
    *_, deep = frozen(f'plain:{TI}', real_weights)(x)
    torch.testing.assert_close(deep, expected[2])


def test_instances_become_labels(shapes, tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/val').symlink_to(shapes / 'val')
    (tmp_path / 'annotations').mkdir()
    whole = json.loads((shapes / 'annotations/val.json').read_text())
    (tmp_path / 'annotations/instances_val.json').write_text(json.dumps(whole))
    data = open_split(tmp_path, 'val')
    assert data.classes == ['background', 'disc', 'box', 'triangle', 'star']
    label = data.label(data.paths[0])
    present = {a['category_id'] for a in whole['annotations'] if a['image_id'] == whole['images'][0]['id']}
    assert set(np.unique(label)) - {0} <= present
    # One category: each object is an inside and a rim.
    one = whole | dict(categories=[dict(id=1, name='thing')])
    one['annotations'] = [a | dict(category_id=1) for a in whole['annotations']]
    (tmp_path / 'annotations/instances_val.json').write_text(json.dumps(one))
    data = open_split(tmp_path, 'val')
    assert data.classes == ['background', 'thing', 'boundary']
    assert set(np.unique(data.label(data.paths[0]))) == {0, 1, 2}
    with pytest.raises(FileNotFoundError, match='instances_train'):
        open_split(tmp_path, 'train')


def test_small_objects_lie_on_large_ones_and_crowds_are_ignored(tmp_path):
    def box(label: int, x: int, y: int, side: int, crowd: int = 0) -> dict:
        polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
        return dict(category_id=label, image_id=1, area=side**2, iscrowd=crowd, segmentation=[polygon])

    boxes = [box(7, 4, 4, 4), box(5, 0, 0, 12), box(5, 14, 14, 2, crowd=1)]
    (tmp_path / 'annotations').mkdir()
    whole = dict(
        images=[dict(id=1, file_name='a.png', height=16, width=20)],
        categories=[dict(id=5, name='large'), dict(id=7, name='small')],
        annotations=[one | dict(id=i) for i, one in enumerate(boxes)],
    )
    (tmp_path / 'annotations/instances_val.json').write_text(json.dumps(whole))
    data = open_split(tmp_path, 'val')
    label = data.label(data.paths[0])
    assert label.shape == (16, 20)
    assert [label[y, x] for y, x in ((1, 1), (5, 5), (10, 10), (14, 14), (1, 18))] == [1, 2, 1, 255, 0]


def test_upright_images_are_turned(tmp_path):
    class Data:
        paths = [tmp_path / 'upright.png', tmp_path / 'lying.png']

        def label(self, path: Path) -> np.ndarray:
            return np.zeros((3, 4), np.uint8)

    for path, shape in zip(Data.paths, ((40, 30, 3), (30, 40, 3)), strict=True):
        cv2.imwrite(str(path), np.full(shape, 255, np.uint8))
    upright, lying = Images(Data(), 9, (32, 48), TI)
    assert upright[0].shape == (1, 3, 48, 32)
    assert lying[0].shape == (1, 3, 32, 48)
    torch.testing.assert_close(lying[0], torch.ones(1, 3, 32, 48))


def test_frozen_table():
    def row(backbone: str, data: str, flops: int, miou: list[float]) -> dict:
        return dict(backbone=backbone, data=data, flops=flops, miou=miou)

    rows = [row(f'hpvit:{TI}:depths=light', 'camvid', 30, [50.0, 52.0])]
    rows.append(row(f'plain:{TI}', 'camvid', 10, [40.0, 40.0]))
    assert frozen_table(rows).splitlines()[2:] == [
        '| `plain` | 1.0 | 40.0 ± 0.0 |  |  |',
        '| `hpvit depths=light` | 3.0 | 51.0 (+11.0 ± 1.4) |  |  |',
    ]
    with pytest.raises(ValueError, match='has two results on camvid'):
        frozen_table([*rows, rows[0] | dict(size='768x1024')])


def test_tables_of_trainings_keep_machines_and_budgets_apart():
    def row(
        seed: int, ap: float, name: str = 'plain', fold: str = 'test', rate: float = 1e-3, **others
    ) -> dict:
        own = dict(task='nuclei', backbone=name, seed=seed, fold=fold, rate=rate, run=f'{name}{seed}')
        options = json.loads(json.dumps(BACKBONES[name]))
        return own | dict(options=options, metrics={'coco/segm_mAP': ap}) | others

    cpu = [row(1, 0.3, iterations=200), row(0, 0.1, iterations=200), row(9, 0.9, fold='select', rate=3e-4)]
    gpu = [row(0, 0.5, budget='short'), row(0, 0.7, 'hpvit-spacing2-fast-pools', budget='short')]
    gpu += [row(0, 0.6, 'hpvit-spacing2', budget='short'), row(0, 0.8, 'hpvit-spacing2-avg', budget='short')]
    results = Results([], by_training(cpu + gpu))
    assert results.of('nuclei', 'plain', 'cpu') == pytest.approx([10, 30])
    assert trained_table(results).splitlines() == [
        '| nuclei, mask AP | FLOPs | pool rates | short, CPU, original images | short, H200, JPEG |',
        '| --- | --- | --- | --- | --- |',
        '| `plain` | 1.0 |  | 20.0 ± 14.1 | 50.0 |',
        '| `hpvit-spacing2-fast-pools` | 3.1 | old |  | 70.0 |',
        '| `hpvit-spacing2` | 3.1 | new |  | 60.0 |',
        '| `hpvit-spacing2-avg` | 3.0 |  |  | 80.0 |',
    ]
    for change, message in (
        (dict(rate=3e-4), 'another rate than the other seeds'),
        (dict(device='other'), 'another device than the other seeds'),
        (dict(iterations=100), 'other options or another budget'),
        (dict(options=dict(type='HPViT')), 'other options or another budget'),
        (dict(seed=1), 'is none of the study or there twice'),
        (dict(backbone='swin'), 'is none of the study or there twice'),
        (dict(budget='longest'), 'is none of the study or there twice'),
    ):
        with pytest.raises(ValueError, match=rf'plain\d (has )?{message}'):
            by_training([cpu[0], cpu[1] | change])


def areas(iou: np.ndarray) -> np.ndarray:
    """Intersections and unions of 1000 pixels a class for IoUs (images, classes)."""
    return np.stack([1000 * iou, np.full_like(iou, 1000)], axis=1)


def test_interval_excludes_zero_only_where_images_agree():
    noise = np.random.default_rng(1)
    base = [noise.uniform(0.3, 0.7, (60, 5)) for _ in range(3)]
    # Each image is one or two points better, and so is every resample of them.
    better = [iou + noise.uniform(0.01, 0.02, iou.shape) for iou in base]
    found = compare([areas(iou) for iou in better], [areas(iou) for iou in base])
    assert found.verdict == 'better'
    assert 1 < found.low < np.mean(found.seeds) < found.high < 2
    other = compare([areas(iou) for iou in base], [areas(iou) for iou in better])
    assert other.verdict == 'worse'
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))
    # One image alone makes the same difference, and many resamples are without it.
    lucky = [iou.copy() for iou in base]
    for iou in lucky:
        iou[7] += 0.9
    found = compare([areas(iou) for iou in lucky], [areas(iou) for iou in base])
    assert np.mean(found.seeds) == pytest.approx(1.5)
    assert found.low == 0
    assert found.verdict == ''
    # All images agree and the seeds do not.
    mixed = [base[0] + 0.09, base[1] - 0.01, base[2] + 0.09]
    found = compare([areas(iou) for iou in mixed], [areas(iou) for iou in base])
    assert found.low > 0
    assert found.verdict == ''


def test_resamples_of_one_image_have_no_spread():
    found = compare([np.array([[[30, 0], [60, 0]]])], [np.array([[[20, 0], [80, 0]]])])
    # The second class is on no image.
    assert (found.low, found.high, *found.seeds) == pytest.approx((25, 25, 25))


def test_images_make_up_the_logged_miou():
    """Those that are stored, summed, have the mIoU that mmseg logged; mmseg's own formula gives the same."""
    results = read_results(ROOT / 'tools/study/results')
    logged = {
        f'{row["budget"]}/{row["run"]}': row['curve'][-1]['mIoU']
        for row in rows_of(ROOT / 'tools/study/results/long.jsonl')
        if row['task'] == 'camvid'
    }
    assert set(results.images) == set(logged)
    for training, found in results.images.items():
        assert len(found) == (233 if training.startswith('long') else 59)
        intersections, unions = torch.tensor(found.sum(0), dtype=torch.float64)
        own = IoUMetric.total_area_to_metrics(intersections, unions, unions, unions)['IoU']
        assert miou(found.sum(0)) == pytest.approx(100 * np.nanmean(own), abs=1e-6)
        assert miou(found.sum(0)) == pytest.approx(logged[training], abs=0.006)


def test_frames_of_a_film_drawn_together_change_no_verdict():
    """Neighbours are alike; runs of eight seconds are as good as single frames for what the page says."""
    results = read_results(ROOT / 'tools/study/results')
    for source, block in (('long', 8), ('short', 2)):
        names = {run.split('/')[2] for run in results.images if run.startswith(source)}
        for name in names - {'plain-after'}:
            assert results.difference(name, 'plain-after', source, block).verdict == (
                results.difference(name, 'plain-after', source).verdict
            )


def test_intersections_and_unions_of_each_image_are_written(tmp_path):
    own = PerImageIoU(tmp_path / 'images.json', iou_metrics=['mIoU'])
    own.dataset_meta = dict(classes=['a', 'b'])
    for found, truth in (([0, 0, 1, 1], [0, 1, 1, 255]), ([1, 1, 1, 1], [1, 1, 1, 1])):
        label, prediction = (dict(data=torch.tensor(pixels).reshape(1, 2, 2)) for pixels in (truth, found))
        own.process({}, [dict(pred_sem_seg=prediction, gt_sem_seg=label)])
    metrics = own.evaluate(2)
    images = np.array(json.loads((tmp_path / 'images.json').read_text()))
    assert images.tolist() == [[[1, 1], [2, 2]], [[0, 4], [0, 4]]]
    assert metrics['mIoU'] == pytest.approx(miou(images.sum(0)), abs=0.01)


def test_page_has_the_results(tmp_path):
    """As `run.py report` writes it."""
    shutil.copy(ROOT / 'docs/study.md', tmp_path)
    report(ROOT / 'tools/study/results', tmp_path / 'study.md')
    assert (tmp_path / 'study.md').read_text() == (ROOT / 'docs/study.md').read_text()
    assert (tmp_path / 'study.png').stat().st_size > 10**4
    assert {row['backbone'] for row in rows_of(ROOT / 'tools/study/results/frozen.jsonl')} == set(FROZEN)


def test_results_are_those_of_the_trainings():
    rows = rows_of(ROOT / 'tools/study/results/finetune.jsonl')
    rate_of = {row['run']: row['rate'] for row in rows}
    assert set(rate_of) <= {run.name for run in RUNS}
    tested = [run for run in RUNS if run.fold == 'test' and run.name in rate_of]
    assert all(best_rate(run, rows) == rate_of[run.name] for run in tested)
    long = rows_of(ROOT / 'tools/study/results/long.jsonl')
    assert sorted((r['run'], r['budget']) for r in long) == sorted((r.name, kind) for r, kind in trainings())
    trained = {name for names in TRAINED.values() for name in names}
    assert trained | {run.backbone for run, _ in trainings()} == set(BACKBONES)


def test_old_rates_of_the_poolings_are_those_of_a_head():
    for name, keys in CUSTOM_KEYS.items():
        model = nn.Module()
        model.backbone = MODELS.build(backbone_of('nuclei', name))
        cfg = dict(type='OptimWrapper', constructor='LayerIdDecayConstructor')
        cfg |= dict(optimizer=dict(type='AdamW', lr=0.5, weight_decay=0.1))
        cfg |= dict(paramwise_cfg=dict(decay_rate=0.75, custom_keys=keys))
        rates = {
            id(p): group['lr']
            for group in build_optim_wrapper(model, cfg).optimizer.param_groups
            for p in group['params']
        }
        found = [rates[id(p)] for name, p in model.named_parameters() if '.pools.' in name]
        assert found == pytest.approx([0.5] * 6)


def test_metrics_are_those_of_the_run_itself(tmp_path):
    """Not of an earlier one in the same folder."""
    for name, value in (('20260101_000000', 1.0), ('20260102_000000', 2.0)):
        (tmp_path / name / 'vis_data').mkdir(parents=True)
        (tmp_path / name / 'vis_data/scalars.json').write_text(
            json.dumps({'mIoU': value}) + '\n{"loss": 3}\n'
        )
    assert last_metrics(tmp_path.iterdir(), ['mIoU']) == {'mIoU': 2.0}
    assert last_metrics([tmp_path / '20260101_000000'], ['mIoU']) == {'mIoU': 1.0}
    assert last_metrics([], ['mIoU']) is None


def test_one_training_is_not_run_twice_at_once(tmp_path):
    run = Run('nuclei', 'plain', 1e-3, 0, 'test')
    (tmp_path / run.name).mkdir(parents=True)
    with (tmp_path / run.name / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match='is being trained by another process'):
            finetuned(run, tmp_path, tmp_path / 'a.jsonl', smoke=True)


def test_rate_is_chosen_by_the_metric_before_the_test():
    rows = [
        dict(task='camvid', backbone='plain', fold='select', rate=rate, metrics={'mIoU': value})
        for rate, value in ((3e-4, 20.0), (1e-3, 30.0), (3e-3, 10.0))
    ]
    chosen = Run('camvid', 'plain', None, 0, 'test')
    assert best_rate(chosen, rows) == 1e-3
    assert best_rate(chosen, [*rows, rows[2] | dict(metrics={'mIoU': 40.0})]) == 1e-3  # not all had that rate
    with pytest.raises(SystemExit, match='choose the rate first'):
        best_rate(chosen, [rows[0], rows[0]])
    assert best_rate(Run('caltech101', 'plain', None, 0, 'test'), []) == 5e-4
    like = [row | dict(backbone='hpvit-spacing2-fast-pools') for row in rows[:2]]
    assert best_rate(Run('camvid', 'hpvit-spacing2-avg', None, 0, 'test'), like) == 1e-3
    assert len({run.name for run in RUNS}) == len(RUNS)


def test_trainings_are_named_by_whole_parts():
    one = Run('camvid', 'plain', None, 0, 'test')
    assert one.name == 'camvid/plain/test-seed0'
    assert all(one.is_in([name]) for name in ('camvid', 'camvid/plain/', one.name))
    assert not any(one.is_in([name]) for name in ('cam', 'camvid/plain-x2', 'camvid/plain/test', 'nuclei'))


@pytest.mark.slow
def test_small_study_runs_and_goes_on(shared, tmp_path):
    """What is there is not run again."""
    own = ('--smoke', '--out', tmp_path)
    name = 'camvid/plain-after/test-seed0'
    some = (name, 'nuclei/plain/select-lr0.001-seed100')
    results = [tmp_path / name for name in ('frozen.jsonl', 'finetune.jsonl')]
    chosen = [
        dict(
            run=f'lr{rate}',
            task='camvid',
            backbone='plain-after',
            fold='select',
            rate=rate,
            metrics={'mIoU': value},
        )
        for rate, value in ((3e-4, 20.0), (1e-3, 10.0))
    ]
    results[1].write_text(''.join(f'{json.dumps(row)}\n' for row in chosen))
    run(sys.executable, 'tools/study/run.py', 'all', shared, *own, '--only', *some, env=None)
    rows = [path.read_text() for path in results]
    assert [len(text.splitlines()) for text in rows] == [9, 4]
    text = (tmp_path / 'study.md').read_text()
    assert '| `two-scale` | ' in text
    assert re.search(r'\| CamVid, mIoU \|.*\n.*\n\| `plain-after` \| 1\.0 \|  \| \d+\.\d \|', text)
    assert (tmp_path / 'study.png').is_file()
    # A training that died between its last checkpoint and its evaluation is evaluated; older logs say nothing of it.
    for log in (tmp_path / name).glob('20*/vis_data/*.json'):
        log.write_text('{"mIoU": 99.0}\n')
    found = [json.loads(row) for row in rows[1].splitlines()]
    (before,) = (row for row in found if row['run'] == name)
    results[1].write_text(''.join(f'{json.dumps(row)}\n' for row in found if row is not before))
    probe_all(shared, str(shared / WEIGHTS), tmp_path, smoke=True)
    finetune(shared, tmp_path, some, smoke=True)
    assert results[0].read_text() == rows[0]
    *others, again = (json.loads(row) for row in results[1].read_text().splitlines())
    assert others == [row for row in found if row is not before]
    assert again['metrics'] == before['metrics']
    assert before['metrics']['mIoU'] > 0
    assert before['rate'] == 3e-4
    with pytest.raises(
        SystemExit, match='has camvid/plain-after/test-seed0 with --smoke; give another --out'
    ):
        finetuned(Run('camvid', 'plain-after', None, 0, 'test'), shared, results[1])


@pytest.mark.slow
def test_small_training_of_the_gpu_list(shared, tmp_path):
    some = ('--budget', 'short', '--only', 'camvid/plain-after/test-seed0', '--jobs', 1, '--smoke')
    run(sys.executable, 'tools/study/long.py', shared, tmp_path, *some, env=None)
    results = read_results(tmp_path)
    (found,) = results.of('camvid', 'plain-after', 'short')
    (images,) = results.images.values()
    assert images.shape == (2, 2, 11)
    assert miou(images.sum(0)) == pytest.approx(found, abs=0.006)


@torch.no_grad()
def test_impossible_probes_are_refused(real_weights):
    for spec, message in (
        (f'plain:{TI}:after=3', 'after=3: expected different numbers of blocks, 1 to 12'),
        (f'plain:{TI}:after=(3,3)', 'after=(3, 3): expected different'),
        (f'plain:{TI}:after=(3,13)', 'numbers of blocks, 1 to 12'),
        (f'two-scale:{TI}:after=(3,)', "unexpected keyword argument 'after'"),
        (f'swin:{TI}', 'expected hpvit:NAME, two-scale:NAME or plain:NAME'),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            frozen(spec, real_weights)
    with pytest.raises(ValueError, match='expected multiples of the patch size 16'):
        frozen(f'plain:{TI}', real_weights)(torch.zeros(1, 3, 64, 100))
    (level,) = frozen(f'plain:{TI}:after=(3,):upsample=2', real_weights)(torch.zeros(1, 3, 64, 96))
    assert level.shape == (1, 192, 8, 12)


def test_other_training_in_the_same_folder_is_not_resumed(tmp_path):
    (tmp_path / 'config.py').write_text('model = dict()\n')
    (tmp_path / 'last_checkpoint').write_text('iter_1.pth')
    for mark in (None, '{"rate": 0.5}'):
        if mark:
            (tmp_path / 'study.json').write_text(mark)
        with pytest.raises(SystemExit, match='has a checkpoint of another backbone, budget, rate or version'):
            train(Run('camvid', 'plain', None, 0, 'test'), 1e-3, tmp_path, tmp_path, smoke=False)
