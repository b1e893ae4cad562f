# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Trainings of the study on one GPU, several at once, in a stated time: the study's budget and a longer one.

    python tools/study/long.py SHARED OUT [--minutes 8] [--jobs 12] [--only caltech101/plain ...]

Starts the trainings below in order and ends those that are not done in time. Writes OUT/long.jsonl, a line for each
with the metrics of every validation, and OUT/long-images.json.gz, the intersections and unions of each image of CamVid.
SHARED is laid out as for tools/study/run.py.
"""

import argparse
import gzip
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# A clone that is not installed works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import mmhpvit
from study.finetune import BACKBONES, SEEDS, TASKS, Run, train

WORKERS = {
    f'{split}_dataloader.{key}': value
    for split in ('train', 'val')
    for key, value in dict(num_workers=1, persistent_workers=True).items()
}
LONG = {
    'optim_wrapper.type': 'AmpOptimWrapper',
    'optim_wrapper.dtype': 'bfloat16',
    'train_dataloader.batch_size': 8,
    'train_cfg.max_iters': 2000,
    'train_cfg.val_interval': 1000,
    'param_scheduler.0.end': 100,
    'param_scheduler.1.begin': 100,
    'param_scheduler.1.end': 2000,
    'default_hooks.checkpoint.interval': 2000,
}
RATES = {'caltech101': 5e-4, 'camvid': 1e-3, 'nuclei': 1e-3}
# Long ones first, since they decide when the last one ends.
TRAININGS = {
    ('camvid', 'long'): (
        *('plain-after', 'hpvit-2280-spacing2-avg', 'hpvit-spacing2-fast-pools'),
        *('hpvit-2280-spacing2-pick', 'two-scale'),
    ),
    ('caltech101', 'short'): (
        *('plain', 'hpvit-fast-pools', 'hpvit', 'hpvit-2280-pick', 'hpvit-2280-avg'),
        *('light-avg', 'light-pick'),
    ),
    ('camvid', 'short'): (
        *('plain-after', 'hpvit-spacing2-fast-pools', 'hpvit-spacing2', 'hpvit-2280-spacing2-pick'),
        *('hpvit-2280-spacing2-avg', 'hpvit-2280-spacing2-conv', 'light-spacing2-avg', 'hpvit-2280-avg'),
    ),
    ('nuclei', 'short'): (
        *('plain-after', 'hpvit-spacing2', 'hpvit-2280-spacing2-pick', 'hpvit-2280-spacing2-avg'),
    ),
}


def trainings() -> list[tuple[Run, str]]:
    """All trainings in order, each with the kind of its budget."""
    return [
        (Run(task, name, None, seed, 'test'), kind)
        for (task, kind), names in TRAININGS.items()
        for seed in SEEDS
        for name in names
    ]


def changes_of(run: Run, kind: str, work_dir: Path) -> dict[str, object]:
    """Options beside those of the study's protocol."""
    changes = dict(WORKERS)
    if run.task == 'camvid':
        changes |= {'val_evaluator.type': 'PerImageIoU', 'val_evaluator.file': work_dir / 'images.json'}
    if kind == 'long':
        changes |= LONG | {'val_dataloader.dataset.indices': None}
    return changes


def result_of(run: Run, kind: str, work_dir: Path) -> dict | None:
    """What a training has come to, out of its logs; None where nothing was evaluated yet."""
    names = TASKS[run.task][1]
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    curve = [{'step': line['step']} | {n: line[n] for n in names} for line in lines if names[0] in line]
    if not curve:
        return None
    losses = [round(line['loss'], 4) for line in lines if 'loss' in line]
    row = dict(
        run=run.name, task=run.task, backbone=run.backbone, seed=run.seed, rate=RATES[run.task], budget=kind
    )
    return row | dict(options=BACKBONES[run.backbone], curve=curve, losses=losses)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('shared', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--minutes', type=float, default=8, help='when to end; default: 8')
    parser.add_argument('--jobs', type=int, default=12, help='trainings at once; default: 12')
    parser.add_argument('--only', nargs='+', default=[], help='trainings, as camvid or camvid/plain-after')
    parser.add_argument('--smoke', action='store_true', help='two iterations and two test images each')
    parser.add_argument('--budget', choices=['short', 'long'], help='those of one budget; default: both')
    args = parser.parse_args()
    start = time.time()
    os.setpgrp()
    wanted = [
        (run, kind)
        for run, kind in trainings()
        if args.budget in (None, kind) and (not args.only or run.is_in(args.only))
    ]
    if not wanted:
        sys.exit(f'error: --only {" ".join(args.only)}: no training has such a name')
    folders = {(run, kind): (args.out / kind / run.name).resolve() for run, kind in wanted}
    seconds = {}

    def one(run: Run, kind: str) -> None:
        begun, folder = time.time(), folders[run, kind]
        try:
            train(
                run, RATES[run.task], args.shared.resolve(), folder, args.smoke, changes_of(run, kind, folder)
            )
            seconds[run, kind] = round(time.time() - begun, 1)
        except SystemExit as error:
            print(error, flush=True)

    pool = ThreadPoolExecutor(args.jobs)
    tasks = [pool.submit(one, *each) for each in wanted]
    while time.time() - start < 60 * args.minutes and not all(task.done() for task in tasks):
        time.sleep(1)
    versions = {p.__name__: p.__version__ for p in (torch, mmhpvit)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'
    images = {}
    with (args.out / 'long.jsonl').open('w') as file:
        for (run, kind), folder in folders.items():
            if row := result_of(run, kind, folder):
                done = dict(seconds=seconds.get((run, kind)), device=device)
                file.write(json.dumps(row | done | versions) + '\n')
                print(run.name, kind, row['curve'][-1], done['seconds'], flush=True)
                if (folder / 'images.json').exists():
                    images[f'{kind}/{run.name}'] = json.loads((folder / 'images.json').read_text())
    (args.out / 'long-images.json.gz').write_bytes(gzip.compress(json.dumps(images).encode()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    os._exit(0)


if __name__ == '__main__':
    main()
