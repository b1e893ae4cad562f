# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The study in small, and the parts that its figures rest on."""

import fcntl
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from bench.frozen import TappedLevels, frozen
from bench.labels import open_split
from study.backbones import (
    BareTwoScaleViT,
    BlocksPlainViT,
    EnlargedPlainViT,
    SmoothTwoScaleViT,
    UpsampledPlainViT,
)
from study.finetune import RUNS, Run, best_rate, finetuned, last_metrics, train
from study.probe import Images
from study.report import SMALL, SUMMARY, finetuned_table, frozen_table, summary_table
from study.run import FROZEN, rows_of
from tool_runs import ROOT, run

from mmhpvit import HPViT, TwoScaleViT, load_plain_weights

TI = 'vit_tiny_patch16_224'


@torch.no_grad()
@pytest.mark.parametrize('size', [(64, 96), (50, 70)])
def test_maps_after_blocks_are_those_of_the_stages(size):
    """Where a stage ends, the tapped map is the stage's own."""
    backbone = HPViT('test_vit', depths='standard').eval()
    ends = [stage.stop for stage in backbone.stages if stage.stop > stage.start]
    x = torch.randn(2, 3, *size)
    expected = backbone(x)
    for found, level in zip(TappedLevels(backbone, ends)(x), expected, strict=True):
        torch.testing.assert_close(found, level)


@torch.no_grad()
def test_early_level_beside_the_plain_maps(real_weights):
    x = torch.randn(1, 3, 64, 96)
    early, *plain = frozen(f'plain:{TI}:early=(0,3,9,0)', real_weights)(x)
    torch.testing.assert_close(early, frozen(f'hpvit:{TI}:depths=(0,3,9,0)', real_weights)(x)[1])
    for found, expected in zip(plain, frozen(f'plain:{TI}', real_weights)(x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('kind', [BlocksPlainViT, UpsampledPlainViT, SmoothTwoScaleViT, EnlargedPlainViT])
def test_baselines_have_the_maps_of_a_pyramid_and_learn(kind):
    backbone = kind('test_vit')
    levels = backbone(torch.randn(2, 3, 64, 96))
    assert [level.shape for level in levels] == [(2, 64, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    sum(level.square().sum() for level in levels).backward()
    idle = {name.partition('.')[0] for name, p in backbone.named_parameters() if p.grad is None}
    assert {backbone.layer_id(name) for name, _ in backbone.named_parameters()} == set(
        range(backbone.num_layer_ids)
    )
    # mmseg's pyramid takes the maps as the blocks leave them.
    assert idle == ({'out_norms'} if kind is BlocksPlainViT else set())


@torch.no_grad()
def test_without_norms_on_its_maps(real_weights):
    backbone, own = (kind(TI, middle_depth=6).eval() for kind in (BareTwoScaleViT, TwoScaleViT))
    for model in (backbone, own):
        load_plain_weights(model, real_weights)
    x = torch.randn(1, 3, 50, 70)
    for i, (bare, expected) in enumerate(zip(backbone(x)[:3], own(x)[:3], strict=True)):
        norm = own.out_norms[str(i)]
        torch.testing.assert_close(norm(bare.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), expected)


@torch.no_grad()
def test_enlarged_map_of_a_two_scale_vit(real_weights):
    """At 1/4 it is what HPViT has there whose first blocks work at 1/8."""
    backbone = SmoothTwoScaleViT(TI).eval()
    light = HPViT(TI, depths='light').eval()
    for model in (backbone, light):
        load_plain_weights(model, real_weights)
    x = torch.randn(1, 3, 50, 70)
    for found, expected in zip(backbone(x)[:2], light(x)[:2], strict=True):
        torch.testing.assert_close(found, expected)
    own = TwoScaleViT(TI).eval()
    load_plain_weights(own, real_weights)
    for found, expected in zip(backbone(x)[1:], own(x)[1:], strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_enlarged_maps_of_the_plain_vit(real_weights):
    """Flat where the deep map is, and nothing but that map."""
    backbone, own = EnlargedPlainViT(TI).eval(), TwoScaleViT(TI).eval()
    for model in (backbone, own):
        load_plain_weights(model, real_weights)
    x = torch.randn(1, 3, 64, 96)
    *finer, deep, last = backbone(x)
    for found, expected in zip((deep, last), own(x)[2:], strict=True):
        torch.testing.assert_close(found, expected)
    for level, scale in zip(finer, (4, 2), strict=True):
        expected = torch.nn.functional.interpolate(deep, scale_factor=scale, mode='bilinear')
        torch.testing.assert_close(level, expected)


@torch.no_grad()
def test_poolings_between_picking_and_averaging(real_weights):
    spec = f'hpvit:{TI}:depths=(0,3,9,0)'
    x = torch.randn(1, 3, 64, 96)
    for share, same in ((0, spec), (1, f'{spec}:pooling=pick')):
        found = frozen(f'{spec}:picked={share}', real_weights)(x)
        for level, expected in zip(found, frozen(same, real_weights)(x), strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-4)
    half = frozen(f'{spec}:picked=0.5', real_weights)(x)
    assert not torch.allclose(half[3], level, atol=0.1)


@torch.no_grad()
def test_two_scales_of_trainings_are_those_of_the_probe(real_weights):
    """Those of `early` are its own, beside the plain ViT's earlier maps."""
    backbone = TwoScaleViT(TI).eval()
    load_plain_weights(backbone, real_weights)
    x = torch.randn(1, 3, 64, 96)
    _, fine, last, _ = backbone(x)
    expected, *_, deep = frozen(f'plain:{TI}:early=(0,3,9,0)', real_weights)(x)
    torch.testing.assert_close(fine, expected)
    torch.testing.assert_close(last, deep)
    for found, expected in zip(frozen(f'two-scale:{TI}', real_weights)(x), backbone(x), strict=True):
        torch.testing.assert_close(found, expected)


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


def test_tables_of_the_page(tmp_path):
    def row(backbone: str, data: str, flops: int, miou: list[float], classes: tuple) -> dict:
        return dict(backbone=backbone, data=data, flops=flops, miou=miou, iou={c: miou for c in classes})

    rows = [
        row(f'hpvit:{TI}:depths=light', 'camvid', 30, [50.0, 52.0], SMALL),
        row(f'plain:{TI}', 'camvid', 10, [40.0, 40.0], SMALL),
    ]
    lines = frozen_table(rows).splitlines()[2:]
    assert lines[0] == '| `plain` | 1.0 | 40.0 ± 0.0 | 40.0 |  |  |  |  |'
    assert lines[1] == '| `hpvit depths=light` | 3.0 | 51.0 ± 1.4 (+11.0 ± 1.4) | 51.0 |  |  |  |  |'
    trained = [
        dict(task='nuclei', backbone='plain', fold=fold, rate=rate, metrics={'coco/bbox_mAP': ap})
        | dict(run=f'{fold}{ap}', seed=round(10 * ap), options=dict(type='PlainViTPyramid'), iterations=200)
        for fold, rate, ap in (('test', 1e-3, 0.1), ('test', 1e-3, 0.3), ('select', 3e-4, 0.9))
    ]
    assert finetuned_table(trained).splitlines() == [
        '| nuclei | operations | seeds | rate | box AP |',
        '| --- | --- | --- | --- | --- |',
        '| plain | 1.0 | 2 | 0.001 | 20.0 ± 14.1 |',
    ]
    for change, message in (
        (dict(rate=3e-4), 'another rate than the other seeds'),
        (dict(iterations=100), 'other options or another budget'),
        (dict(options=dict(type='HPViT')), 'other options or another budget'),
    ):
        with pytest.raises(ValueError, match=rf'test0\.3 has {message}'):
            finetuned_table([trained[0], trained[1] | change])
    for change in (dict(seed=1), dict(backbone='swin')):
        with pytest.raises(ValueError, match='is none of the study or there twice'):
            finetuned_table([trained[0], trained[1] | change])
    with pytest.raises(ValueError, match='has two results on camvid'):
        frozen_table([*rows, rows[0] | dict(size='768x1024')])


def test_page_has_the_results():
    page = (ROOT / 'docs/study.md').read_text()
    frozen_rows = rows_of(ROOT / 'tools/study/results/frozen.jsonl')
    assert {row['backbone'] for row in frozen_rows} <= set(FROZEN)
    assert f'<!-- frozen -->\n{frozen_table(frozen_rows)}\n<!-- /frozen -->' in page
    rows = rows_of(ROOT / 'tools/study/results/finetune.jsonl')
    rate_of = {row['run']: row['rate'] for row in rows}
    assert set(rate_of) <= {run.name for run in RUNS}
    assert f'<!-- finetuned -->\n{finetuned_table(rows)}\n<!-- /finetuned -->' in page
    tested = [run for run in RUNS if run.fold == 'test' and run.name in rate_of]
    assert all(best_rate(run, rows) == rate_of[run.name] for run in tested)
    summary = f'<!-- summary -->\n{summary_table(frozen_rows, rows)}\n<!-- /summary -->'
    assert summary in page
    assert set(filter(None, SUMMARY.values())) <= set(FROZEN)


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
    like = [row | dict(backbone='hpvit-spacing2') for row in rows[:2]]
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
    name = 'camvid/plain-blocks/test-seed0'
    some = ('--only', name, 'nuclei/plain/select-lr0.001-seed100')
    results = [tmp_path / name for name in ('frozen.jsonl', 'finetune.jsonl')]
    chosen = [
        dict(
            run=f'lr{rate}',
            task='camvid',
            backbone='plain-blocks',
            fold='select',
            rate=rate,
            metrics={'mIoU': value},
        )
        for rate, value in ((3e-4, 20.0), (1e-3, 10.0))
    ]
    results[1].write_text(''.join(f'{json.dumps(row)}\n' for row in chosen))
    run(sys.executable, 'tools/study/run.py', 'all', shared, *own, *some, env=None)
    rows = [path.read_text() for path in results]
    assert [len(text.splitlines()) for text in rows] == [9, 4]
    text = (tmp_path / 'study.md').read_text()
    assert '| `two-scale` | ' in text
    assert '| `TwoScaleViT` | 1.9 | 2.1 |  |  |  | ' in text
    assert re.search(r'`Feature2Pyramid` on the same four \| 1\.0 \| 1\.0 \|  \| \d+\.\d \|', text)
    assert (tmp_path / 'study.png').is_file()
    # A training that died between its last checkpoint and its evaluation is evaluated; older logs say nothing of it.
    for log in (tmp_path / name).glob('20*/vis_data/*.json'):
        log.write_text('{"mIoU": 99.0}\n')
    found = [json.loads(row) for row in rows[1].splitlines()]
    (before,) = (row for row in found if row['run'] == name)
    results[1].write_text(''.join(f'{json.dumps(row)}\n' for row in found if row is not before))
    for part, options in (('frozen', ()), ('finetune', some)):
        run(sys.executable, 'tools/study/run.py', part, shared, *own, *options, env=None)
    assert results[0].read_text() == rows[0]
    *others, again = (json.loads(row) for row in results[1].read_text().splitlines())
    assert others == [row for row in found if row is not before]
    assert again['metrics'] == before['metrics']
    assert before['metrics']['mIoU'] > 0
    assert before['rate'] == 3e-4
    with pytest.raises(
        SystemExit, match='has camvid/plain-blocks/test-seed0 with --smoke; give another --out'
    ):
        finetuned(Run('camvid', 'plain-blocks', None, 0, 'test'), shared, results[1])


@torch.no_grad()
def test_impossible_probes_are_refused(real_weights):
    for spec, message in (
        (f'hpvit:{TI}:after=3', 'after=3: expected different numbers of blocks, 1 to 12'),
        (f'hpvit:{TI}:after=(3,3)', 'after=(3, 3): expected different'),
        (f'hpvit:{TI}:out_indices=(0,1):after=(3,6)', 'numbers of blocks, 1 to 4'),
        (f'plain:{TI}:after=(3,13)', 'numbers of blocks, 1 to 12'),
        (f'two-scale:{TI}:after=(3,)', 'after= is for hpvit:NAME and plain:NAME'),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            frozen(spec, real_weights)
    with pytest.raises(ValueError, match='expected multiples of the patch size 16'):
        frozen(f'plain:{TI}', real_weights)(torch.zeros(1, 3, 64, 100))
    (level,) = frozen(f'hpvit:{TI}:out_indices=(0,1):after=(3,)', real_weights)(torch.zeros(1, 3, 64, 96))
    assert level.shape == (1, 192, 8, 12)


def test_other_training_in_the_same_folder_is_not_resumed(tmp_path):
    (tmp_path / 'config.py').write_text('model = dict()\n')
    (tmp_path / 'last_checkpoint').write_text('iter_1.pth')
    for mark in (None, '{"rate": 0.5}'):
        if mark:
            (tmp_path / 'study.json').write_text(mark)
        with pytest.raises(SystemExit, match='has a checkpoint of another backbone, budget, rate or version'):
            train(Run('camvid', 'plain', None, 0, 'test'), 1e-3, tmp_path, tmp_path, smoke=False)
