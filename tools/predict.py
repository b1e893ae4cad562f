# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Predict on an image or a folder of images: drawn pictures, and a JSON file with the numbers.

    python tools/predict.py IMAGE_OR_FOLDER --config CONFIG --checkpoint CHECKPOINT --out DIR

The config's ``default_scope`` decides between detection, segmentation and classification; mmdet's, mmseg's or
mmpretrain's own inferencer does the work. DIR gets ``pictures/``, for segmentation ``maps/`` with the class index of
each pixel, and ``predictions.json``: a list with one entry an image, boxes as x1, y1, x2, y2 in pixels, masks as
COCO's compressed RLE. An image that cannot be read gets an ``error`` there; the others are predicted, and the exit
status is 1.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from checks.model import check_operators
from checks.weights import check_checkpoint
from launch import read_config, stop
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from tqdm import tqdm

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
DRAWN = 900  # pixels of the longer side that pictures with objects should have


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', type=Path, help='an image, or a folder of images (not of folders)')
    parser.add_argument('--config', required=True, help='config that the checkpoint was trained with')
    parser.add_argument('--checkpoint', required=True, help='checkpoint that training wrote')
    parser.add_argument('--out', type=Path, required=True, help='folder that the results go to')
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw objects from this score on (0.3)')
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', default=default, help='default: %(default)s')
    return parser.parse_args()


def find_images(path: Path) -> list[Path]:
    """The image, or the images of a folder in order of their names."""
    if not path.exists():
        stop(f'{str(path)!r} does not exist; expected an image or a folder of images')
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES) if path.is_dir() else [path]
    if not found:
        stop(f'no image in {str(path)!r}; looked for {" ".join(IMAGES)}')
    return found


def detector(args: argparse.Namespace) -> Callable[[Path], tuple[dict, np.ndarray]]:
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(args.config, args.checkpoint, args.device, show_progress=False)
    names = inferencer.model.dataset_meta['classes']

    def predict(path: Path) -> tuple[dict, np.ndarray]:
        (sample,) = inferencer(str(path), return_datasamples=True, no_save_vis=True)['predictions']
        found = inferencer.pred2dict(sample)
        image = cv2.imread(str(path))[..., ::-1]
        picture = draw_objects(inferencer.visualizer, image, sample, args.score_thr)
        return found | {'classes': [names[label] for label in found['labels']]}, picture

    return predict


def draw_objects(
    visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, score_thr: float
) -> np.ndarray:
    """Objects on an RGB image, which is enlarged where it is so small that their labels would hide it."""
    if 'pred_instances' not in sample or 'pred_panoptic_seg' in sample:
        visualizer.add_datasample('image', image, sample, draw_gt=False, pred_score_thr=score_thr)
        return visualizer.get_image()
    scale = max(1, round(DRAWN / max(image.shape[:2])))
    kept = sample.pred_instances[sample.pred_instances.scores > score_thr].cpu()
    kept.bboxes = kept.bboxes * scale
    if 'masks' in kept:
        kept.masks = kept.masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    big = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    drawn = sample.new()
    drawn.pred_instances = kept
    visualizer.add_datasample('image', big, drawn, draw_gt=False, pred_score_thr=0)
    return visualizer.get_image()


def segmenter(args: argparse.Namespace) -> Callable[[Path], tuple[dict, np.ndarray]]:
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(args.config, args.checkpoint, device=args.device)
    inferencer.show_progress = False
    names = inferencer.model.dataset_meta['classes']
    maps = args.out / 'maps'
    maps.mkdir(parents=True, exist_ok=True)

    def predict(path: Path) -> tuple[dict, np.ndarray]:
        result = inferencer(str(path), return_vis=True)
        labels = np.asarray(result['predictions']).astype(np.uint8 if len(names) <= 256 else np.uint16)
        file = maps / f'{path.name}.png'
        cv2.imwrite(str(file), labels)
        shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        found = {name: round(float(share), 4) for name, share in zip(names, shares, strict=True) if share}
        return {'map': str(file.relative_to(args.out)), 'share_of_pixels': found}, result['visualization']

    return predict


def classifier(args: argparse.Namespace) -> Callable[[Path], tuple[dict, np.ndarray]]:
    from mmpretrain.apis import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(args.config, args.checkpoint, args.device)

    def predict(path: Path) -> tuple[dict, np.ndarray]:
        (found,) = inferencer(str(path))
        found['pred_scores'] = [round(float(score), 5) for score in found['pred_scores']]
        image = cv2.imread(str(path))[..., ::-1]
        text = f'{found.get("pred_class", found["pred_label"])} {found["pred_score"]:.2f}'
        place, font, scale = (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7
        for colour, width in (((0, 0, 0), 4), ((255, 255, 255), 1)):
            image = cv2.putText(np.ascontiguousarray(image), text, place, font, scale, colour, width)
        return found, image

    return predict


KINDS = {'mmdet': detector, 'mmseg': segmenter, 'mmpretrain': classifier}


def main() -> None:
    # Slurm's time limit and scancel; without this nothing of `finally` is done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = parse_args()
    images = find_images(args.images)
    if not Path(args.config).is_file():
        stop(f'--config {args.config!r} does not exist')
    if not args.checkpoint.startswith(('http://', 'https://')) and not Path(args.checkpoint).is_file():
        stop(f'--checkpoint {args.checkpoint!r} does not exist')
    cfg = read_config(args.config)
    scope = cfg.get('default_scope')
    if scope not in KINDS:
        stop(f'{args.config} has default_scope={scope!r}; expected one of {", ".join(KINDS)}')
    if args.device != 'cpu':
        check_operators(cfg.model)
    check_checkpoint(cfg, args.checkpoint)
    predict = KINDS[scope](args)
    pictures = args.out / 'pictures'
    pictures.mkdir(parents=True, exist_ok=True)
    results = []
    try:
        for path in tqdm(images, desc='predict', unit='image'):
            entry = {'image': str(path)}
            results.append(entry)
            if cv2.imread(str(path)) is None:
                entry['error'] = 'OpenCV does not read it'
                continue
            found, picture = predict(path)
            # Named by the whole file name: a.jpg and a.png are two images.
            drawn = pictures / f'{path.name}.png'
            cv2.imwrite(str(drawn), picture[..., ::-1])
            entry |= {'picture': str(drawn.relative_to(args.out))} | found
    finally:
        # What was predicted stays when a later image fails or the job is ended.
        (args.out / 'predictions.json').write_text(json.dumps(results))
    print(f'{len(results)} images: {args.out / "predictions.json"}, {pictures}')
    if broken := [entry['image'] for entry in results if 'error' in entry]:
        stop(f'{len(broken)} of {len(results)} images could not be read, the first is {broken[0]!r}')


if __name__ == '__main__':
    main()
