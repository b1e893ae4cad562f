# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Generate a small instance-segmentation set in COCO format: textured shapes that overlap.

Writes ``train`` and ``val`` images (PNG), ``annotations/{train,val}.json`` (boxes, areas and run-length masks of the
visible parts) and ``semantic/{train,val}`` (PNG; 0 is the background, then the classes in order). The seed determines
all of it.

    python tools/make_shapes.py OUT --train 240 --val 40 --size 192
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

CLASSES = ('disc', 'box', 'triangle', 'star')
# Fewer visible pixels than this cannot be told from texture, so such a shape is not annotated.
MIN_AREA = 64


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random texture, (size, size, 3) uint8: two colours mixed by smooth noise, stripes or checks."""
    y, x = np.mgrid[:size, :size] / size
    kind = rng.integers(3)
    if kind == 0:
        mix = np.zeros((size, size))
        for octave in (4, 8, 16, 32):
            noise = rng.random((octave, octave))
            mix += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) / octave
        mix = (mix - mix.min()) / np.ptp(mix)
    else:
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(3, 14)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        mix = np.sin(2 * np.pi * frequency * u)
        if kind == 2:
            mix = mix * np.sin(2 * np.pi * frequency * v)
        mix = (mix + 1) / 2
    first = rng.integers(0, 256, 3)
    second = np.clip(first + rng.integers(-90, 91, 3), 0, 255)
    image = first + mix[..., None] * (second - first) + rng.normal(0, 4, (size, size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def outline(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """The polygon of one shape at a random place, size and angle, (N, 2) int32 in pixels."""
    radius = rng.uniform(0.09, 0.24) * size
    centre = rng.uniform(0.05, 0.95, 2) * size
    stretch = rng.uniform(0.7, 1.0)
    angle = rng.uniform(0, 2 * np.pi)
    corners = {'disc': 40, 'box': 4, 'triangle': 3, 'star': 10}[CLASSES[label]]
    phi = np.arange(corners) * 2 * np.pi / corners
    r = np.where(np.arange(corners) % 2, 0.45, 1.0) if CLASSES[label] == 'star' else np.ones(corners)
    points = np.stack([r * np.cos(phi), r * np.sin(phi) * stretch], axis=1) * radius
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points @ turn.T + centre).round().astype(np.int32)


def scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One picture: image (size, size, 3), map of instances (0 is background), class of each instance."""
    image = texture(rng, size)
    instances = np.zeros((size, size), np.int32)
    labels = [int(label) for label in rng.integers(len(CLASSES), size=rng.integers(2, 8))]
    for i, label in enumerate(labels, 1):
        mask = np.zeros((size, size), np.uint8)
        cv2.fillPoly(mask, [outline(rng, label, size)], 1)
        inside = mask.astype(bool)
        image[inside] = texture(rng, size)[inside]
        instances[inside] = i
    return image, instances, labels


def annotate(instances: np.ndarray, labels: list[int]) -> list[dict]:
    """COCO annotations (without ids) of the visible part of each instance."""
    annotations = []
    for i, label in enumerate(labels, 1):
        visible = instances == i
        if visible.sum() < MIN_AREA:
            continue
        rle = coco_mask.encode(np.asfortranarray(visible.astype(np.uint8)))
        annotations.append(
            dict(
                category_id=label + 1,
                bbox=coco_mask.toBbox(rle).tolist(),
                area=int(visible.sum()),
                segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
                iscrowd=0,
            )
        )
    return annotations


def make_split(out: Path, split: str, count: int, size: int, seed: int) -> None:
    for folder in (out / split, out / 'semantic' / split, out / 'annotations'):
        folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(1, count + 1):
        rng = np.random.default_rng([seed, 0 if split == 'train' else 1, i])
        image, instances, labels = scene(rng, size)
        name = f'{i:05d}.png'
        cv2.imwrite(str(out / split / name), image)
        classes = np.array([0, *(label + 1 for label in labels)], np.uint8)[instances]
        cv2.imwrite(str(out / 'semantic' / split / name), classes)
        images.append(dict(id=i, file_name=name, width=size, height=size))
        for annotation in annotate(instances, labels):
            annotations.append(dict(annotation, id=len(annotations) + 1, image_id=i))
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    partial = out / 'annotations' / f'{split}.json.part'
    partial.write_text(json.dumps(content))
    partial.rename(out / 'annotations' / f'{split}.json')


def make_shapes(out: Path, train: int, val: int, size: int, seed: int = 0) -> None:
    """Write the whole set into ``out``; the same arguments give the same files."""
    make_split(out, 'train', train, size, seed)
    make_split(out, 'val', val, size, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('out', type=Path, help='folder to write to')
    parser.add_argument('--train', type=int, default=240, help='training images (default: 240)')
    parser.add_argument('--val', type=int, default=40, help='validation images (default: 40)')
    parser.add_argument('--size', type=int, default=192, help='height and width in pixels (default: 192)')
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    args = parser.parse_args()
    make_shapes(args.out, args.train, args.val, args.size, args.seed)
    print(f'{args.train} training and {args.val} validation images in {args.out}')


if __name__ == '__main__':
    main()
