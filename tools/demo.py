# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Train Mask R-CNN with HPViT-Ti on generated pictures for some minutes on a CPU, and draw its predictions.

Generates the pictures (``data/shapes``), measures COCO AP of the untrained model, trains it, measures again, and
draws predictions into ``work_dirs/demo/predictions.png``.
"""

import argparse
import contextlib
import io
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from launch import stop
from make_shapes import make_shapes
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmhpvit import load_plain_weights

CONFIG = Path(__file__).resolve().parents[1] / 'configs/demo/mask-rcnn_hpvit-ti_fpn_shapes.py'
SCORE = 0.3  # of what is drawn
ITERS = 300  # that teach it from random weights, too
OWN_CONFIG = 'configs/coco/mask-rcnn_hpvit-s-dino_fpn_8xb2-amp-1x_coco.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--weights',
        metavar='FILE|timm',
        help='plain ViT-Ti/16 weights to start from: a file, or timm to download them (default: random)',
    )
    parser.add_argument('--iters', type=int, default=ITERS, help='training iterations (default: %(default)s)')
    parser.add_argument('--train', type=int, default=240, help='training pictures (default: 240)')
    parser.add_argument('--val', type=int, default=40, help='validation pictures (default: 40)')
    parser.add_argument('--data', type=Path, default=Path('data/shapes'), help='default: data/shapes')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/demo'), help='default: work_dirs/demo'
    )
    return parser.parse_args()


class ProgressLine(Hook):
    """Prints one line with the progress, the loss and the time left."""

    def before_train(self, runner: Runner) -> None:
        self.start = time.time()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        done, total = runner.iter + 1, runner.max_iters
        # A terminal redraws its line; a log file gets one line in ten.
        if not sys.stdout.isatty() and done % max(1, total // 10):
            return
        spent = time.time() - self.start
        left = spent / done * (total - done)
        bar = '#' * (20 * done // total)
        end = '\r' if sys.stdout.isatty() and done < total else '\n'
        print(
            f'  [{bar:<20}] {done}/{total}  loss {float(outputs["loss"]):.2f}  '
            f'{spent:.0f} s, about {left:.0f} s left   ',
            end=end,
            flush=True,
        )


def build_runner(args: argparse.Namespace) -> Runner:
    cfg = Config.fromfile(CONFIG)
    data = f'{args.data}/'
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = data
    cfg.test_evaluator.ann_file = data + 'annotations/val.json'
    cfg.train_cfg.max_iters = args.iters
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    warmup = max(1, min(30, args.iters // 3))
    cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = warmup
    cfg.param_scheduler[1].end = args.iters
    cfg.model.backbone.init_cfg = None
    cfg.work_dir = str(args.work_dir)
    cfg.log_level = 'ERROR'
    return Runner.from_cfg(cfg)


def evaluate(runner: Runner, name: str) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = runner.test()
    ap = {kind: 100 * metrics[f'coco/{kind}_mAP'] for kind in ('bbox', 'segm')}
    print(f'  {name}: box AP {ap["bbox"]:.1f}, mask AP {ap["segm"]:.1f}')
    return ap['segm']


@torch.no_grad()
def draw(runner: Runner, path: Path, count: int = 6) -> int:
    """Tile the first validation pictures, annotations above predictions; return the number of predictions drawn."""
    model, dataset = runner.model.eval(), runner.test_dataloader.dataset
    painter = DetLocalVisualizer()
    painter.dataset_meta = dict(
        dataset.metainfo, palette=[(255, 80, 0), (0, 90, 255), (0, 170, 60), (230, 0, 200)]
    )
    columns, shown = [], 0
    for item in (dataset[i] for i in range(min(count, len(dataset)))):
        image = np.ascontiguousarray(item['inputs'].permute(1, 2, 0).numpy()[..., ::-1])
        sample = model.test_step(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))[0]
        rows = []
        for truth in (True, False):
            options = dict(draw_gt=truth, draw_pred=not truth, pred_score_thr=SCORE)
            painter.add_datasample('picture', image, sample, **options)
            rows.append(painter.get_image())
        columns.append(np.vstack(rows))
        shown += int((sample.pred_instances.scores > SCORE).sum())
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.hstack(columns)[..., ::-1])
    return shown


def check_learned(untrained: float, trained: float, iters: int) -> None:
    """Stop where mask AP (percent) did not rise; after fewer iterations than the default, only print it."""
    if trained > untrained:
        return
    text = f'mask AP {trained:.1f} after training is not above {untrained:.1f} before'
    if iters >= ITERS:
        stop(text)
    print(f'{text}: {iters} iterations show the steps, {ITERS} teach')


def main() -> None:
    args = parse_args()
    if args.iters < 2:
        stop(f'--iters {args.iters}: expected at least 2')
    if args.weights not in (None, 'timm') and not Path(args.weights).is_file():
        stop(f'--weights {args.weights!r} does not exist; give a file with ViT-Ti/16 weights, or timm')
    print(
        f'[1/4] making {args.train} pictures to train on and {args.val} to validate: {args.data}', flush=True
    )
    make_shapes(args.data, args.train, args.val, size=192)
    print('[2/4] model: HPViT-Ti with FPN and Mask R-CNN', flush=True)
    runner = build_runner(args)
    if args.weights:
        try:
            print(load_plain_weights(runner.model.backbone, None if args.weights == 'timm' else args.weights))
        except (OSError, ValueError) as error:
            stop(str(error))
    else:
        print('  from RANDOM weights: with --weights FILE or --weights timm it learns much faster')
    untrained = evaluate(runner, 'untrained')
    print(
        f'[3/4] training: {args.iters} iterations of 4 pictures on {next(runner.model.parameters()).device}'
    )
    runner.register_hook(ProgressLine())
    runner.train()
    trained = evaluate(runner, 'trained')
    print('[4/4] predictions')
    picture = args.work_dir / 'predictions.png'
    shown = draw(runner, picture)
    print(f'  annotated above, predicted below ({shown or "none"} with a score above {SCORE}): {picture}')
    amp = '' if torch.cuda.is_available() else ' --cfg-options optim_wrapper.type=OptimWrapper'
    print('Next, on COCO (linked as data/coco, or any folder in its format):')
    print(f'  {sys.executable} tools/train.py {OWN_CONFIG}{amp}')
    check_learned(untrained, trained, args.iters)


if __name__ == '__main__':
    main()
