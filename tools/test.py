# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Evaluate a trained detector, segmenter or classifier; draw its predictions on request."""

import argparse
from pathlib import Path

from check_data import check_data
from launch import (
    add_common_options,
    build_runner,
    check_checkpoint,
    leave_processes,
    load_config,
    stop,
)
from mmengine.config import Config
from mmengine.evaluator import DumpResults


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint that training wrote, or its URL')
    parser.add_argument('--out', help='file (.pkl) that the predictions go to')
    parser.add_argument('--show-dir', help='folder that pictures with drawn predictions go to')
    add_common_options(parser)
    return parser.parse_args()


def draw_into(cfg: Config, folder: str) -> None:
    """Let the visualization hook of the config's library draw every test image into a folder; with several processes,
    those of the first."""
    if 'visualization' not in cfg.get('default_hooks', {}):
        stop('--show-dir: the config has no default_hooks.visualization')
    # mmdet's hook joins a relative folder to itself once an image, so the path must be absolute.
    folder = str(Path(folder).absolute())
    hook = cfg.default_hooks.visualization
    if cfg.default_scope == 'mmdet':
        hook.update(draw=True, test_out_dir=folder)
    elif cfg.default_scope == 'mmseg':
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = folder
    else:
        hook.update(enable=True, interval=1, out_dir=folder)


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if not args.checkpoint.startswith(('http://', 'https://')) and not Path(args.checkpoint).is_file():
        stop(f'checkpoint {args.checkpoint!r} does not exist; training writes them to work_dirs/CONFIG')
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        stop(f'--out {args.out!r}: expected a file name that ends in .pkl')
    check_checkpoint(cfg, args.checkpoint)
    cfg.load_from = args.checkpoint
    # Else FlexibleRunner fetches the weights that training starts from.
    cfg.init_weights_for_test_or_val = False
    if args.show_dir:
        draw_into(cfg, args.show_dir)
    check_data(cfg, 'test_dataloader')
    runner = build_runner(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    runner.test()
    del runner
    leave_processes()


if __name__ == '__main__':
    main()
