# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Export a backbone, or a whole segmenter, as ONNX or as a torch.export program, for any batch and image size.

    python tools/export.py CONFIG OUT.onnx --checkpoint CHECKPOINT       a segmenter: images to logits at their size
    python tools/export.py CONFIG OUT.onnx --backbone                    any config of HPViT: images to feature maps
    python tools/export.py CONFIG OUT.pt2 --checkpoint CHECKPOINT        the same for torch.export.load

Input: normalised images (the config's data_preprocessor has mean and std), float32, (B, 3, H, W) or with the backbone's
in_channels.

ONNX takes any H and W above 32. It pads sides with zeros to multiples of 32, as mmdet and mmseg do with
size_divisor=32, and crops the output. A .pt2 takes multiples of 32 above 32. The written file is read again and
compared with torch at three sizes. Segmenters see the whole image: sliding windows are left to the caller.
"""

import argparse
import copy
import importlib.util
import logging
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from launch import read_config, run, stop
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from mmhpvit.preflight.model import own_backbone
from mmhpvit.preflight.weights import check_checkpoint

SIZES = {'.onnx': ((64, 96), (101, 75), (224, 131)), '.pt2': ((64, 96), (128, 96), (224, 160))}
BATCHES = (1, 2, 3)


class Maps(nn.Module):
    """Images (B, in_channels, H, W) to the feature maps of a backbone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.in_channels = self.backbone.in_channels
        self.strides = [4 * 2**i for i in self.backbone.out_indices]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(x)


class Logits(nn.Module):
    """Images (B, in_channels, H, W) to the logits of a segmenter, (B, classes, H, W)."""

    strides = (1,)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.in_channels = model.backbone.in_channels

    def forward(self, x: Tensor) -> tuple[Tensor]:
        logits = self.model.decode_head(self.model.extract_feat(x))
        size = dict(size=x.shape[-2:], mode='bilinear', align_corners=self.model.align_corners)
        return (F.interpolate(logits, **size),)


class AnySize(nn.Module):
    """Fills images up to multiples of 32 and crops what comes out to ceil(H / stride), ceil(W / stride)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h, w = x.shape[-2:]
        outs = self.inner(F.pad(x, (0, -w % 32, 0, -h % 32)))
        sizes = [((h + s - 1) // s, (w + s - 1) // s) for s in self.inner.strides]
        return tuple(out[:, :, :rows, :columns] for out, (rows, columns) in zip(outs, sizes, strict=True))


class SummedAdaptivePool(nn.Module):
    """Adaptive average pooling by sums over rectangles; ONNX knows the ready one at fixed sizes only.

    Args:
        cells: Rows and columns that come out.
    """

    def __init__(self, cells: int | tuple[int, int]) -> None:
        super().__init__()
        self.cells = (cells, cells) if isinstance(cells, int) else cells

    def forward(self, x: Tensor) -> Tensor:
        (rows, columns), (h, w) = self.cells, x.shape[-2:]
        sums = F.pad(x.cumsum(2).cumsum(3), (1, 0, 1, 0))
        y, x = torch.arange(rows, device=x.device), torch.arange(columns, device=x.device)
        top, bottom = y * h // rows, ((y + 1) * h + rows - 1) // rows
        left, right = x * w // columns, ((x + 1) * w + columns - 1) // columns
        above, below = sums.index_select(2, top), sums.index_select(2, bottom)
        total = (below - above).index_select(3, right) - (below - above).index_select(3, left)
        return total / ((bottom - top)[:, None] * (right - left)).to(total)


def replace_adaptive_pools(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            setattr(module, name, SummedAdaptivePool(child.output_size))
        else:
            replace_adaptive_pools(child)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('out', type=Path, help='file that ends in .onnx or .pt2')
    parser.add_argument('--checkpoint', help='checkpoint that training wrote; without it, random weights')
    parser.add_argument('--backbone', action='store_true', help='the backbone alone')
    args = parser.parse_args()
    if not Path(args.config).is_file():
        stop(f'config {args.config!r} does not exist')
    if args.checkpoint and not Path(args.checkpoint).is_file():
        stop(f'--checkpoint {args.checkpoint!r} does not exist')
    if args.out.suffix not in SIZES:
        stop(f'{str(args.out)!r}: expected a name that ends in .onnx or .pt2')
    missing = [n for n in ('onnx', 'onnxscript', 'onnxruntime') if not importlib.util.find_spec(n)]
    if args.out.suffix == '.onnx' and missing:
        stop(f'ONNX needs {", ".join(missing)}: pip install {" ".join(missing)}')
    return args


def build(args: argparse.Namespace) -> nn.Module:
    """The part of the config's model that is exported, on the CPU."""
    cfg = read_config(args.config)
    if cfg.get('default_scope') != 'mmseg' and not args.backbone:
        stop(
            f'{args.config} is of {cfg.get("default_scope")}: only segmenters are exported whole; '
            'add --backbone for the backbone alone'
        )
    init_default_scope(cfg.default_scope)
    if own_backbone(cfg.model.backbone.type) is None:
        stop(f'{args.config} has a {cfg.model.backbone.type}; only backbones of this package are exported')
    if args.checkpoint:
        check_checkpoint(cfg, args.checkpoint)
    cfg.model.backbone.update(init_cfg=None, compile_blocks=False)
    model = MODELS.build(cfg.model)
    if not args.backbone and 'Mask2Former' in type(model.decode_head).__name__:
        stop(f'{args.config}: Mask2Former gives queries, not logits; add --backbone for the backbone alone')
    if not model.backbone.block_adapter.compiles:
        stop(
            f'blocks of {model.backbone.plain} cut windows by the size of the image and cannot be exported for all'
        )
    if args.checkpoint:
        load_checkpoint(model, args.checkpoint, map_location='cpu', strict=True)
    model.eval()
    return Maps(model) if args.backbone else Logits(model)


def write_onnx(part: nn.Module, path: Path) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.onnx.export(
            AnySize(part).eval(),
            (torch.randn(2, part.in_channels, 96, 160),),
            input_names=['images'],
            dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
            dynamo=True,
            verbose=False,
        )
    program.save(str(path))


def write_program(part: nn.Module, path: Path) -> None:
    rows, columns = (torch.export.Dim(name, min=2) for name in ('rows', 'columns'))
    shapes = ({0: torch.export.Dim('batch'), 2: 32 * rows, 3: 32 * columns},)
    with torch.no_grad():
        images = torch.randn(2, part.in_channels, 96, 160)
        torch.export.save(torch.export.export(part, (images,), dynamic_shapes=shapes), path)


def read(path: Path):
    """What was written, as a function from images to a list of tensors."""
    if path.suffix == '.pt2':
        module = torch.export.load(path).module()
        return lambda images: list(module(images))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {'images': images.numpy()})]


def compare(part: nn.Module, path: Path) -> float:
    """Largest difference from torch over three batches of other sizes, relative to the largest value."""
    run, worst = read(path), 0.0
    reference = AnySize(part).eval() if path.suffix == '.onnx' else part
    for batch, size in zip(BATCHES, SIZES[path.suffix], strict=True):
        images = torch.randn(batch, part.in_channels, *size)
        with torch.no_grad():
            expected = reference(images)
            try:
                got = run(images)
            except Exception as error:
                # torch and onnxruntime raise many kinds, with pages of text.
                reason = str(error).strip().splitlines()[0][:200]
                stop(f'{path} does not run on images {tuple(images.shape)}: {type(error).__name__}, {reason}')
        for a, b in zip(expected, got, strict=True):
            if a.shape != b.shape:
                stop(f'{path} gives {tuple(b.shape)} where torch gives {tuple(a.shape)}')
            if not b.isfinite().all():
                stop(f'{path} gives values that are not finite')
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1)))
    return worst


def main() -> None:
    args = parse_args()
    for name in ('timm', 'onnxscript', 'torch.onnx', 'mmengine'):
        logging.getLogger(name).setLevel(logging.ERROR)
    part = build(args)
    if not args.checkpoint:
        print('RANDOM weights: give --checkpoint for trained ones', file=sys.stderr)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    exported = copy.deepcopy(part)  # what is compared stays mmseg's own
    replace_adaptive_pools(exported)
    try:
        (write_onnx if args.out.suffix == '.onnx' else write_program)(exported, args.out)
    except Exception as error:
        # The exporters raise many kinds, with pages of text.
        reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
        stop(f'{args.config} cannot be exported as {args.out.suffix}: {type(error).__name__}, {reason}')
    try:
        difference = compare(part, args.out)
    except BaseException:
        args.out.unlink()
        raise
    if difference > 1e-4:
        args.out.unlink()
        stop(f'{args.out} differs from torch by {difference:.1e}, relative to the largest value')
    print(f'{args.out}: differs from torch by {difference:.1e} at three sizes')


if __name__ == '__main__':
    run(main)
