# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Draw docs/predictions.jpg: what the demo's detector finds in generated pictures that it was not trained on.

tools/demo.sh --weights timm --iters 600
PYTHONPATH=tools .venv/bin/python docs/predictions.py work_dirs/demo/iter_600.pth
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
from make_shapes import CLASSES, make_split
from mmdet.apis import DetInferencer
from mmengine.structures import InstanceData

import mmhpvit  # noqa: F401 -- registers the backbone

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/demo/mask-rcnn_hpvit-ti_fpn_shapes.py'
SIZE, GAP, SCORE = 384, 8, 0.5
# BGR, in the order of the classes.
COLOURS = ((0, 200, 255), (255, 120, 0), (60, 220, 60), (230, 60, 230))


def draw(image: np.ndarray, found: InstanceData) -> np.ndarray:
    """Masks, boxes and classes with scores on a picture (H, W, 3), the surest on top."""
    image = image.copy()
    labels = []
    for i in found.scores.argsort().tolist():
        name, colour = CLASSES[found.labels[i]], COLOURS[found.labels[i]]
        mask = found.masks[i].numpy()
        image[mask] = 0.5 * image[mask] + 0.5 * np.array(colour)
        outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, outline, -1, (255, 255, 255), 1, cv2.LINE_AA)
        x1, y1, x2, y2 = (int(v) for v in found.bboxes[i].clamp(1, SIZE - 2))
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, 2)
        labels.append((f'{name} {found.scores[i]:.2f}', x1, y1, colour))
    for text, x, y, colour in labels:  # after all masks, inside the picture
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)
        x, y = min(x, SIZE - width - 8), max(y, height + 8)
        cv2.rectangle(image, (x - 1, y - height - 8), (x + width + 6, y), colour, -1)
        cv2.putText(image, text, (x + 3, y - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('checkpoint', help='checkpoint of tools/demo.sh')
    parser.add_argument('--pictures', type=int, nargs='+', default=[10, 8, 12, 6], help='numbers from 1 on')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/predictions.jpg')
    args = parser.parse_args()
    inferencer = DetInferencer(str(CONFIG), args.checkpoint, 'cpu', show_progress=False)
    tiles = []
    with tempfile.TemporaryDirectory() as folder:
        make_split(Path(folder), 'val', max(args.pictures), SIZE, seed=1)
        for number in args.pictures:
            path = f'{folder}/val/{number:05d}.png'
            (sample,) = inferencer(path, return_datasamples=True, no_save_vis=True)['predictions']
            found = sample.pred_instances
            tiles += [
                draw(cv2.imread(path), found[found.scores > SCORE]),
                np.full((SIZE, GAP, 3), 255, np.uint8),
            ]
    cv2.imwrite(str(args.out), np.hstack(tiles[:-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == '__main__':
    main()
