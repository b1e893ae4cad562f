# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The trainings of tools/study/run.py: the same config, data and budget; the backbone, the rate and the seed differ."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import mmdet
import mmengine
import mmseg
import timm
import torch

import mmhpvit

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / 'work_dirs' / 'study'
SEEDS = (0, 1, 2)
VIT = 'vit_tiny_patch16_224'
WEIGHTS = f'weights/{VIT}.augreg_in21k_ft_in1k.safetensors'

# Config, the metrics that are kept, by the first of which the rate is chosen, and the rates that are tried, on images
# that are not tested on.
TASKS = {
    'caltech101': ('classifier_hpvit-ti_caltech101', ['accuracy/top1', 'accuracy/top5'], (5e-4,)),
    'camvid': ('upernet_hpvit-ti_camvid', ['mIoU'], (3e-4, 1e-3)),
    'nuclei': (
        'mask-rcnn_hpvit-ti_nuclei',
        [f'coco/{kind}_mAP{size}' for kind in ('bbox', 'segm') for size in ('', '_50', '_s')],
        (3e-4, 1e-3),
    ),
    'coco_mini': (
        'mask-rcnn_hpvit-ti_coco-mini',
        [
            'coco/person_precision',  # that of masks; most of the other classes are near zero
            *(f'coco/{kind}_mAP{size}' for kind in ('bbox', 'segm') for size in ('', '_50', '_s')),
        ],
        (3e-4, 1e-3),
    ),
}
BACKBONES = {
    'plain': dict(type='PlainViTPyramid'),
    'plain-after': dict(type='PlainViTPyramid', after=(3, 6, 9, 12)),
    'plain-x2': dict(type='UpsampledPlainViT'),
    'two-scale-embedding': dict(type='TwoScaleViT', fine_depths=0),
    'two-scale': dict(type='TwoScaleViT'),
    'two-scale-middle': dict(type='TwoScaleViT', middle_depth=6),
    'hpvit-fast-pools': dict(type='HPViT'),
    'hpvit': dict(type='HPViT'),
    'hpvit-spacing2-fast-pools': dict(type='HPViT', grid_spacing=2),
    'hpvit-spacing2': dict(type='HPViT', grid_spacing=2),
    'hpvit-spacing2-avg': dict(type='HPViT', grid_spacing=2, pooling='avg'),
    'hpvit-2280-avg': dict(type='HPViT', depths=(2, 2, 8, 0), pooling='avg'),
    'hpvit-2280-pick': dict(type='HPViT', depths=(2, 2, 8, 0), pooling='pick'),
    'hpvit-2280-spacing2-conv': dict(type='HPViT', depths=(2, 2, 8, 0), pooling='conv', grid_spacing=2),
    'hpvit-2280-spacing2-pick': dict(type='HPViT', depths=(2, 2, 8, 0), pooling='pick', grid_spacing=2),
    'hpvit-2280-spacing2-avg': dict(type='HPViT', depths=(2, 2, 8, 0), pooling='avg', grid_spacing=2),
    'light-avg': dict(type='HPViT', depths=(0, 3, 9, 0), pooling='avg'),
    'light-pick': dict(type='HPViT', depths=(0, 3, 9, 0), pooling='pick'),
    'light-spacing2-avg': dict(type='HPViT', depths=(0, 3, 9, 0), pooling='avg', grid_spacing=2),
}
# The old rates: poolings learned at the full rate, as a head does. Each factor is the inverse of the layer's decay.
_FAST = {f'pools.{i}': dict(lr_mult=0.75 ** (stop - 13)) for i, stop in enumerate((2, 4, 10))}
CUSTOM_KEYS = {'hpvit-fast-pools': _FAST, 'hpvit-spacing2-fast-pools': _FAST}
# What tools/study/run.py trains.
TRAINED = {
    'caltech101': ('plain', 'hpvit-fast-pools', 'hpvit'),
    'camvid': (
        *('plain', 'plain-after', 'two-scale'),
        *('hpvit-fast-pools', 'hpvit-spacing2-fast-pools', 'hpvit-spacing2'),
    ),
    'nuclei': (
        *('plain', 'plain-after', 'plain-x2', 'two-scale-embedding', 'two-scale', 'two-scale-middle'),
        *('hpvit-fast-pools', 'hpvit-spacing2-fast-pools', 'hpvit-spacing2', 'hpvit-spacing2-avg'),
    ),
    'coco_mini': ('plain', 'plain-after', 'two-scale', 'hpvit-spacing2-fast-pools', 'hpvit-spacing2'),
}
# One option of another backbone is changed, and the rate is that one's.
RATE_OF = {'hpvit-spacing2-avg': 'hpvit-spacing2-fast-pools'}
BUDGET = {'camvid': 200, 'nuclei': 200, 'coco_mini': 300}  # iterations; Caltech-101 has the config's epochs
# Every fourth frame of CamVid's films.
TEST_IMAGES = {'camvid': list(range(0, 233, 4))}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task, backbone: Keys of ``TASKS`` and ``BACKBONES``.
        rate: Learning rate; None is the one that the trainings of the fold 'select' have chosen.
        seed: Of the runner.
        fold: 'test', or 'select' to choose the rate on images that are not tested on.
    """

    task: str
    backbone: str
    rate: float | None
    seed: int
    fold: str

    @property
    def name(self) -> str:
        rate = '' if self.rate is None else f'-lr{self.rate:g}'
        return f'{self.task}/{self.backbone}/{self.fold}{rate}-seed{self.seed}'

    def is_in(self, names: Sequence[str]) -> bool:
        """Whether a name is that of this training, of its backbone or of its task."""
        return any(f'{self.name}/'.startswith(f'{name.strip("/")}/') for name in names)


def _runs() -> list['Run']:
    """List all trainings: for each backbone the choice of its rate first, then a test for each seed."""
    runs = []
    for task, names in TRAINED.items():
        rates = TASKS[task][2]
        for name in names:
            if len(rates) > 1 and name not in RATE_OF:
                runs += [Run(task, name, rate, 100, 'select') for rate in rates]
            runs += [Run(task, name, None, seed, 'test') for seed in SEEDS]
    return runs


RUNS = _runs()


def finetuned(run: Run, shared: Path, out: Path, smoke: bool = False) -> dict:
    """Return the result of a training from a file of JSON lines; train and append it if it is not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work_dir = ((out.parent if smoke else WORK) / run.name).resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f'error: {run.name} is being trained by another process, in {work_dir}')
        done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        for row in done:
            if row['run'] == run.name:
                if row.get('smoke', False) != smoke:
                    sys.exit(
                        f'error: {out} has {run.name} {"without" if smoke else "with"} --smoke; give another --out'
                    )
                check_row(row)
                return row
        rate = best_rate(run, done) if run.rate is None else run.rate
        start = time.time()
        metrics = train(run, rate, shared.resolve(), work_dir, smoke)
        row = asdict(run) | dict(run=run.name, rate=rate, options=BACKBONES[run.backbone])
        row |= dict(iterations=BUDGET.get(run.task), metrics=metrics) | (dict(smoke=True) if smoke else {})
        row['minutes'] = round((time.time() - start) / 60, 2)
        row |= {p.__name__: p.__version__ for p in (torch, timm, mmengine, mmdet, mmseg, mmhpvit)}
        with out.open('a') as file:
            file.write(json.dumps(row) + '\n')
    return row


def check_row(row: dict) -> None:
    """Refuse a stored result that the study would not come to now.

    Raises:
        ValueError: The row has other options or another budget than the study has now.
    """
    options, budget = json.loads(json.dumps(BACKBONES[row['backbone']])), BUDGET.get(row['task'])
    # Those of tools/study/long.py have another.
    if row['options'] != options or row.get('iterations', budget) != budget:
        raise ValueError(f'{row["run"]} has other options or another budget; take it out and run it again')


def backbone_of(task: str, backbone: str) -> dict:
    """Config of a backbone as a task has it, without weights."""
    # A classifier takes the last map that is no mere pooling of another.
    levels = dict(out_indices=(2 if backbone == 'plain' else 3,)) if task == 'caltech101' else {}
    return dict(plain=VIT) | BACKBONES[backbone] | levels


def best_rate(run: Run, done: list[dict]) -> float:
    """Return the rate that was best on the fold 'select', by the first metric of the task."""
    backbone = RATE_OF.get(run.backbone, run.backbone)
    _, metrics, rates = TASKS[run.task]
    if len(rates) == 1:
        return rates[0]
    tried = [
        row
        for row in done
        if (row['task'], row['backbone'], row['fold']) == (run.task, backbone, 'select')
        and row['rate'] in rates
    ]
    if {row['rate'] for row in tried} != set(rates):
        sys.exit(
            f'error: {run.task}/{run.backbone}: choose the rate first, by trainings {run.task}/{backbone}/select'
        )
    return max(tried, key=lambda r: r['metrics'][metrics[0]])['rate']


def train(
    run: Run, rate: float, shared: Path, work_dir: Path, smoke: bool, changes: dict[str, object] | None = None
) -> dict[str, float]:
    """Run tools/train.py to its end, resuming from a checkpoint if there is one, and return its metrics.

    ``changes`` are options that add to those of the study's protocol or replace them.
    """
    options = {'randomness.seed': run.seed, 'optim_wrapper.optimizer.lr': rate}
    if budget := BUDGET.get(run.task):
        options |= {
            'train_cfg.max_iters': budget,
            'train_cfg.val_interval': budget,
            'param_scheduler.1.end': budget,
        }
    options |= images_of(run, shared, work_dir)
    options |= changes or {}
    if smoke:
        options |= {
            'train_cfg.max_iters': 2,
            'train_cfg.val_interval': 2,
            'val_dataloader.dataset.indices': '[0,9]',
        }
    env = os.environ | dict(MMHPVIT_TEST_DATA=str(shared), PYTHONWARNINGS='ignore')
    paths = [str(ROOT / 'tools'), env.get('PYTHONPATH', '')]
    if run.task == 'caltech101':
        paths.append(f'{sys.prefix}/beside')
    env['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
    work_dir.mkdir(parents=True, exist_ok=True)
    config = work_dir / 'config.py'
    imports = ['mmhpvit'] + ['study.backbones', 'study.metrics'] * (run.task != 'caltech101')
    init = dict(type='PlainViT', checkpoint=str(shared / WEIGHTS))
    backbone = dict(_delete_=True, init_cfg=init) | backbone_of(run.task, run.backbone)
    # mmengine rewrites the config, so a file of our own records what is trained.
    mark, what = work_dir / 'study.json', dict(backbone=backbone, budget=BUDGET.get(run.task), rate=rate)
    what = json.dumps(what | dict(seed=run.seed, mmhpvit=mmhpvit.__version__))
    if (work_dir / 'last_checkpoint').exists() and (not mark.exists() or mark.read_text() != what):
        sys.exit(
            f'error: {work_dir} has a checkpoint of another backbone, budget, rate or version; delete it to begin again'
        )
    mark.write_text(what)
    custom_keys = CUSTOM_KEYS.get(run.backbone)
    config.write_text(
        f"_base_ = '{ROOT}/tools/study/configs/{TASKS[run.task][0]}.py'\n"
        f'custom_imports = dict(imports={imports}, allow_failed_imports=False)\n'
        f'model = dict(backbone={backbone})\n'
        + (f'optim_wrapper = dict(paramwise_cfg=dict(custom_keys={custom_keys}))\n' if custom_keys else '')
    )
    names = TASKS[run.task][1]
    metrics = _call('train', [config, '--resume', '--work-dir', work_dir], options, env, work_dir, names)
    if metrics is None:
        # An earlier run ended between its last checkpoint and its evaluation.
        checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
        images = {k.replace('val_', 'test_', 1): v for k, v in options.items() if k.startswith('val_')}
        metrics = _call('test', [config, checkpoint, '--work-dir', work_dir], images, env, work_dir, names)
    return metrics


def _call(
    tool: str, arguments: list, options: dict[str, object], env: dict, work_dir: Path, names: list[str]
) -> dict[str, float] | None:
    """Run a tool and return the metrics that it has logged, not those of earlier runs in that folder."""
    before = set(work_dir.iterdir())
    changes = ['--cfg-options', *(f'{key}={value}' for key, value in options.items())] if options else []
    command = [str(c) for c in (sys.executable, ROOT / f'tools/{tool}.py', *arguments, *changes)]
    with (work_dir / 'output.log').open('a') as log:
        result = subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    if result.returncode:
        sys.exit(f'error: {tool} in {work_dir} failed; its output is in output.log there')
    return last_metrics(set(work_dir.iterdir()) - before, names)


def images_of(run: Run, shared: Path, work_dir: Path) -> dict[str, object]:
    """Return the options that set the training and the test images."""
    data = shared / 'data' / run.task
    if run.task == 'camvid':
        if run.fold == 'test':
            return {'val_dataloader.dataset.indices': str(TEST_IMAGES['camvid'])}
        prefix = 'val_dataloader.dataset.data_prefix'
        return {
            f'{prefix}.img_path': 'images/val',
            f'{prefix}.seg_map_path': 'annotations/val',
            'val_dataloader.dataset.indices': str(list(range(0, 101, 3))),
        }
    if run.fold == 'test':
        return {}
    # A fifth of the training images, in a file of its own, since COCO's metric wants all images of its file.
    suffix = '_super' if run.task == 'coco_mini' else ''
    whole = json.loads((data / f'annotations/instances_train{suffix}.json').read_text())
    options = {}
    for part, chosen in (('train', lambda i: i % 5), ('val', lambda i: not i % 5)):
        images = [image for i, image in enumerate(whole['images']) if chosen(i)]
        ids = {image['id'] for image in images}
        kept = [a for a in whole['annotations'] if a['image_id'] in ids]
        path = work_dir / f'{part}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(whole | dict(images=images, annotations=kept)))
        options[f'{part}_dataloader.dataset.ann_file'] = path
    return options | {
        'val_dataloader.dataset.data_prefix.img': 'images/train/',
        'val_evaluator.ann_file': work_dir / 'val.json',
    }


def last_metrics(folders: Iterable[Path], names: list[str]) -> dict[str, float] | None:
    """Return the metrics of the last evaluation in folders of logs; None if nothing was evaluated."""
    files = [file for f in sorted(folders) for file in (*f.glob('vis_data/scalars.json'), *f.glob('*.json'))]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    lines = [line for line in lines if names[0] in line]
    return {name: lines[-1][name] for name in names} if lines else None
