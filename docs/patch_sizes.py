# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Measure what resizing a patch kernel costs: pseudo-inverse against bicubic, on photographs.

A kernel of k pixels sees a photograph; resized to n pixels, it sees the photograph resized by n / k. Printed
is the root mean square of the difference between the two embeddings of every patch, relative to that of the
first (mean removed), median and range over the photographs.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmhpvit.backbones.timm_vit import build_plain_vit
from mmhpvit.checkpoints.load import plain_weights
from mmhpvit.layers.patch_embed import resize_kernel


def bicubic(kernel: Tensor, size: int) -> Tensor:
    """The kernel as a picture, resized, and scaled so that a patch of one colour is answered as before."""
    resized = F.interpolate(kernel, size=(size, size), mode='bicubic', antialias=True)
    return resized * (kernel.shape[-1] / size) ** 2


def photograph(path: Path, size: int) -> Tensor:
    image = Image.open(path).convert('RGB').resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def error(kernel: Tensor, resized: Tensor, path: Path, grid: int) -> float:
    old, new = kernel.shape[-1], resized.shape[-1]
    expected = F.conv2d(photograph(path, grid * old), kernel, stride=old)
    answer = F.conv2d(photograph(path, grid * new), resized, stride=new)
    spread = (expected - expected.mean(dim=(2, 3), keepdim=True)).square().mean().sqrt()
    return ((answer - expected).square().mean().sqrt() / spread).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('weights', help='file of the plain ViT')
    parser.add_argument('images', type=Path, help='folder with photographs')
    parser.add_argument('--plain', default='vit_tiny_patch16_224')
    parser.add_argument('--sizes', type=int, nargs='+', default=[4, 8, 14, 32])
    parser.add_argument('--number', type=int, default=32, help='of photographs')
    args = parser.parse_args()
    vit = build_plain_vit(args.plain)
    kernel = plain_weights(vit, args.plain, args.weights)[0]['patch_embed.proj.weight']
    files = sorted(args.images.rglob('*.jpg'))
    files = files[:: max(len(files) // args.number, 1)][: args.number]
    print(f'{args.plain}, {len(files)} photographs\n')
    print('| kernel | pseudo-inverse | bicubic |\n|---|---|---|')
    for size in args.sizes:
        cells = []
        for resized in (resize_kernel(kernel, size), bicubic(kernel, size)):
            errors = [error(kernel, resized, path, 14) for path in files]
            cells.append(f'{np.median(errors):.3f} ({min(errors):.3f} to {max(errors):.3f})')
        print(f'| {kernel.shape[-1]} -> {size} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
