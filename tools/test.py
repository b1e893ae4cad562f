# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Evaluate a trained detector, segmenter or classifier; draw its predictions on request."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch import add_common_options, build_runner, leave_processes, load_config, run, stop
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from torch import int16

from mmhpvit.preflight.data import check_data, inner_datasets
from mmhpvit.preflight.model import check_operators
from mmhpvit.preflight.weights import check_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint that training wrote, or its URL')
    parser.add_argument('--out', help='file (.pkl) that the predictions go to')
    parser.add_argument(
        '--tta', action='store_true', help="test-time augmentation: the config's tta_model, tta_pipeline"
    )
    parser.add_argument('--show-dir', help='folder that pictures with drawn predictions go to')
    add_common_options(parser)
    return parser.parse_args()


def draw_into(cfg: Config, folder: str) -> None:
    """Make the library's visualization hook draw every test image of the first process into a folder."""
    if 'visualization' not in cfg.get('default_hooks', {}):
        stop('--show-dir: the config has no default_hooks.visualization')
    # mmdet's hook joins a relative folder to itself for each image, so the path must be absolute.
    folder = str(Path(folder).absolute())
    hook = cfg.default_hooks.visualization
    if cfg.default_scope == 'mmdet':
        hook.update(draw=True, test_out_dir=folder)
    elif cfg.default_scope == 'mmseg':
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = folder
    else:
        hook.update(enable=True, interval=1, out_dir=folder)


def augment(cfg: Config) -> None:
    """Switch the config to its test-time augmentation."""
    for name in ('tta_model', 'tta_pipeline'):
        if name not in cfg:
            stop(
                f"--tta: the config has no {name}; mmdet's rtmdet_tta.py and mmseg's configs/_base_ have one to copy"
            )
    for _, dataset in inner_datasets(cfg.test_dataloader.dataset, 'test_dataloader.dataset'):
        dataset.pipeline = cfg.tta_pipeline
    # mmengine gives the wrapper the top-level preprocessor of mmseg's bases, which would replace the model's own.
    own = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    cfg.model = dict(cfg.tta_model, module=cfg.model, data_preprocessor=own)


class DumpMaps(DumpResults):
    """Collects predictions of a segmenter: the class of each pixel as int16, without scores and labels."""

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        super().process(data_batch, [_without_scores(sample) for sample in data_samples])


def _without_scores(sample: dict) -> dict:
    # The scores of all classes of all images would stay in memory, 200 MB each on ADE20K.
    kept = {k: v for k, v in sample.items() if not k.startswith('gt_') and k != 'seg_logits'}
    found = kept.get('pred_sem_seg')
    return kept if found is None else kept | dict(pred_sem_seg=dict(data=found['data'].to(int16)))


def dump(library: str, path: str) -> DumpResults:
    """The metric that collects a library's predictions and writes them; masks of mmdet as COCO's RLE."""
    if library == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=path)
    return (DumpMaps if library == 'mmseg' else DumpResults)(out_file_path=path)


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if not args.checkpoint.startswith(('http://', 'https://')) and not Path(args.checkpoint).is_file():
        stop(f'checkpoint {args.checkpoint!r} does not exist; training writes them to work_dirs/CONFIG')
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        stop(f'--out {args.out!r}: expected a file name that ends in .pkl')
    check_operators(cfg.model)
    check_checkpoint(cfg, args.checkpoint)
    cfg.load_from = args.checkpoint
    if args.tta:
        augment(cfg)
    # Otherwise FlexibleRunner loads the weights that training starts from.
    cfg.init_weights_for_test_or_val = False
    if args.show_dir:
        draw_into(cfg, args.show_dir)
    check_data(cfg, 'test_dataloader')
    runner = build_runner(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(dump(cfg.get('default_scope'), args.out))
    runner.test()
    del runner
    leave_processes()


if __name__ == '__main__':
    run(main)
