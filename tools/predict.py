# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Predict on an image or a folder of images, draw the predictions, and write them as JSON.

    python tools/predict.py IMAGE_OR_FOLDER --config CONFIG --checkpoint CHECKPOINT --out DIR

The config's ``default_scope`` decides between detection, segmentation and classification, and the inferencer of mmdet,
mmseg or mmpretrain runs. DIR gets:
    ``pictures/``: the drawn images.
    ``maps/``: of segmenters the class index of each pixel, of panoptic models COCO's format.
    ``predictions.json``: a list with one entry an image. Boxes are x1, y1, x2, y2 in pixels, masks COCO's compressed
        RLE.

An image that cannot be read or predicted gets an ``error`` in the JSON file. The others are predicted, and the exit
status is 1.
"""

import argparse
import copy
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from launch import read_config, run, stop
from mmcv import imfrombytes
from mmengine.config import Config, ConfigDict
from mmengine.infer import BaseInferencer
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from tqdm import tqdm

from mmhpvit.preflight.data import inner_datasets
from mmhpvit.preflight.model import check_operators, known_classes
from mmhpvit.preflight.weights import check_checkpoint

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
# From a path and its image in RGB to entries of the JSON file and a picture in RGB.
Predictor = Callable[[Path, np.ndarray], tuple[dict, np.ndarray]]
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


class UnreadableError(ValueError):
    """A file that is no image to OpenCV."""


def read_image(path: Path) -> np.ndarray:
    """The image as the libraries' own readers have it, (H, W, 3) in RGB.

    Raises:
        UnreadableError: It is no image, it is cut off, or OpenCV cannot take its name.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UnreadableError('its name is no UTF-8') from None
    data = path.read_bytes()
    image = imfrombytes(data) if data else None
    if image is None:
        raise UnreadableError('OpenCV does not read it')
    return image[..., ::-1]


def names_in(dataset: ConfigDict, library: str) -> dict:
    """``classes`` and ``palette`` (RGB, 0 to 255) of a data set of the config; where it has no colours, some."""
    found = dict(known_classes(dataset, library))
    if not found.get('classes'):
        stop(
            'neither the checkpoint nor the config has names of classes; set '
            'test_dataloader.dataset.metainfo=dict(classes=(...))'
        )
    colours = np.random.RandomState(42).randint(0, 255, (len(found['classes']), 3))
    return dict(palette=colours.tolist()) | found


def naming(inferencer: type[BaseInferencer]) -> type[BaseInferencer]:
    """An inferencer that takes the classes from the config where the checkpoint does not tell them.

    The libraries' own take those of COCO or Cityscapes then.
    """

    class Naming(inferencer):
        def _load_weights_to_model(self, model: torch.nn.Module, checkpoint: dict, cfg: Config) -> None:
            checkpoint = checkpoint if 'state_dict' in checkpoint else dict(state_dict=checkpoint)
            meta = dict(checkpoint.get('meta') or {})
            if not meta.keys() & {'dataset_meta', 'CLASSES'}:
                meta['dataset_meta'] = names_in(cfg.test_dataloader.dataset, cfg.default_scope)
            super()._load_weights_to_model(model, dict(checkpoint, meta=meta), cfg)

    return Naming


def of_one_dataset(cfg: Config) -> Config:
    """The config with the first data set that wrappers of the test data have inside; inferencers take its pipeline."""
    cfg = copy.deepcopy(cfg)
    _, cfg.test_dataloader.dataset = next(inner_datasets(cfg.test_dataloader.dataset, ''))
    return cfg


def detector(args: argparse.Namespace, cfg: Config) -> Predictor:
    from mmdet.apis import DetInferencer

    inferencer = naming(DetInferencer)(of_one_dataset(cfg), args.checkpoint, args.device, show_progress=False)
    names = inferencer.model.dataset_meta['classes']

    def predict(path: Path, image: np.ndarray) -> tuple[dict, np.ndarray]:
        (sample,) = inferencer(str(path), return_datasamples=True, no_save_vis=True)['predictions']
        picture = draw_objects(inferencer.visualizer, image, sample, args.score_thr)
        found = inferencer.pred2dict(sample)
        if 'panoptic_seg' in found:
            found['map'] = write_image(found.pop('panoptic_seg')[..., ::-1], path, args.out, 'maps')
        return found | {'classes': [names[label] for label in found.get('labels', ())]}, picture

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


def write_image(values: np.ndarray, path: Path, out: Path, kind: str) -> str:
    """Write a picture or map (H, W) or (H, W, 3) in BGR of the image at a path into a folder of its kind.

    Returns:
        The name of the file inside of ``out``: the image's whole one and .png, since a.jpg and a.png are two images.

    Raises:
        OSError: It cannot be written.
    """
    file = out / kind / f'{path.name}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(file), values):
        raise OSError(f'{file} cannot be written; is the disk full?')
    return str(file.relative_to(out))


def segmenter(args: argparse.Namespace, cfg: Config) -> Predictor:
    from mmseg.apis import MMSegInferencer

    inferencer = naming(MMSegInferencer)(of_one_dataset(cfg), args.checkpoint, device=args.device)
    inferencer.show_progress = False
    names = inferencer.model.dataset_meta['classes']

    def predict(path: Path, image: np.ndarray) -> tuple[dict, np.ndarray]:
        result = inferencer(str(path), return_vis=True)
        labels = np.asarray(result['predictions']).astype(np.uint8 if len(names) <= 256 else np.uint16)
        shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        found = {name: round(float(share), 4) for name, share in zip(names, shares, strict=True) if share}
        return {'map': write_image(labels, path, args.out, 'maps'), 'share_of_pixels': found}, result[
            'visualization'
        ]

    return predict


def classifier(args: argparse.Namespace, cfg: Config) -> Predictor:
    from mmpretrain.apis import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(args.config, args.checkpoint, args.device)

    def predict(path: Path, image: np.ndarray) -> tuple[dict, np.ndarray]:
        (found,) = inferencer(str(path))
        found['pred_scores'] = [round(float(score), 5) for score in found['pred_scores']]
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
    predict = KINDS[scope](args, cfg)
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    try:
        for path in tqdm(images, desc='predict', unit='image'):
            entry = {'image': str(path)}
            results.append(entry)
            try:
                found, picture = predict(path, read_image(path))
                entry |= {'picture': write_image(picture[..., ::-1], path, args.out, 'pictures')} | found
            except UnreadableError as error:
                entry['error'] = str(error)
            except Exception as error:
                # The libraries raise all kinds of them, and the other images are to be predicted.
                entry['error'] = f'{type(error).__name__}: {error}'
    finally:
        # What was predicted stays when a later image fails or the job is ended.
        (args.out / 'predictions.json').write_text(json.dumps(results))
    print(f'{len(results)} images: {args.out / "predictions.json"}, {args.out / "pictures"}')
    if broken := [entry for entry in results if 'error' in entry]:
        stop(
            f'{len(broken)} of {len(results)} images could not be read or predicted, the first is '
            f'{broken[0]["image"]!r}: {broken[0]["error"]}'
        )


if __name__ == '__main__':
    run(main)
