# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Draw the levels of a backbone, the attention of one token in each stage, and a trained model's predictions.

    python tools/visualize.py IMAGE --config CONFIG [--checkpoint CHECKPOINT] --out DIR

DIR gets:
    levels.png: the backbone's maps, and the plain ViT's map with the same weights. Red, green and blue are the first
        three principal components.
    attention.png: how much the token at --point attends to the others, in the last block of each stage, averaged over
        heads.
    prediction.png: with a checkpoint only.

Without a checkpoint the backbone has the pre-trained weights that the config names. The pyramid of PlainViTPyramid
is then newly initialised.
"""

import argparse
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
import torch
from launch import read_config, run, stop
from matplotlib import pyplot as plt
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from predict import KINDS, UnreadableError, read_image
from regroup import regroup
from torch import Tensor, nn

from mmhpvit import HPViT, PlainViTPyramid
from mmhpvit.backbones.stages import STRIDES, Stage
from mmhpvit.layers.partition import Layout, partition, restore
from mmhpvit.preflight.model import own_backbone
from mmhpvit.preflight.weights import check_checkpoint

SIDE = 3.2  # inches of a picture


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', type=Path)
    parser.add_argument('--config', required=True, help='config with a backbone of mmhpvit')
    parser.add_argument('--checkpoint', help='checkpoint that training with the config wrote')
    parser.add_argument('--out', type=Path, required=True, help='folder that the pictures go to')
    parser.add_argument('--point', help='X,Y in pixels of the image; default: its centre')
    parser.add_argument(
        '--max-side', type=int, default=512, help='shrink larger images to this; default: 512'
    )
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw objects from this score on (0.3)')
    parser.add_argument('--device', default='cpu', help='for the prediction; default: %(default)s')
    return parser.parse_args()


def load_backbones(args: argparse.Namespace) -> tuple[HPViT, HPViT | None, Tensor, Tensor]:
    """The backbone, the plain ViT with its weights where it has them all, mean and standard deviation of the images."""
    cfg = read_config(args.config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    options = cfg.model.backbone | dict(compile_blocks=False)  # compiled blocks do not show their attention
    if own_backbone(options.type) is None:
        known = 'HPViT, PlainViTPyramid or TwoScaleViT'
        stop(f'{args.config} has a backbone of type {options.type!r}; expected {known}')
    backbone = MODELS.build(options)
    if backbone.in_channels != 3:
        stop(f'{args.config} has in_channels={backbone.in_channels}; only backbones of RGB images are drawn')
    if args.checkpoint:
        check_checkpoint(cfg, args.checkpoint)
        holder = nn.Module()
        holder.backbone = backbone
        load_checkpoint(holder, args.checkpoint, map_location='cpu')
    else:
        backbone.init_weights()
    normalise = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    mean, std = (torch.tensor(normalise[key]).reshape(1, 3, 1, 1).float() for key in ('mean', 'std'))
    plain = plain_twin(backbone)
    return backbone.eval(), plain and plain.eval(), mean, std


def plain_twin(backbone: HPViT) -> HPViT | None:
    """The plain ViT at 1/16 with a backbone's weights; None, and why in a line, where the backbone lacks some."""
    depths = (0, 0, backbone.depth, 0)
    plain = HPViT(backbone.plain, depths, keep_prefix=bool(backbone.prefix_names), out_indices=(2,))
    reason = None
    if len(backbone.blocks) < backbone.depth:
        reason = f'out_indices={backbone.out_indices} leaves blocks out'
    elif backbone.patch_embed.kernel != plain.patch_embed.kernel:
        reason = f'its patches have {backbone.patch_embed.kernel} pixels'
    if reason:
        print(f'The plain ViT is not drawn beside it: {reason}')
        return None
    norms = list(backbone.out_norms)
    if isinstance(backbone, PlainViTPyramid):
        norms = [name for name in norms if backbone.after[int(name)] == backbone.depth]
    last = max(norms, key=int)
    weights = backbone.state_dict()
    weights |= {f'out_norms.2.{key}': value for key, value in backbone.out_norms[last].state_dict().items()}
    plain.load_state_dict({key: weights[key] for key in plain.state_dict()})
    return plain


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """An image (H, W, 3) with sides of at most so many pixels."""
    scale = min(1.0, max_side / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)


def place_of(text: str | None, size: tuple[int, int], drawn: tuple[int, int]) -> tuple[int, int]:
    """Row and column of "X,Y" of an image of ``size``, in the picture of size ``drawn``; the centre by default."""
    if text is None:
        return drawn[0] // 2, drawn[1] // 2
    try:
        x, y = (float(value) for value in text.split(','))
    except ValueError:
        stop(f'--point {text!r}: expected X,Y in pixels of the image')
    if not (0 <= x < size[1] and 0 <= y < size[0]):
        stop(f'--point {text} lies outside of the image of {size[1]}x{size[0]} pixels')
    return int(y * drawn[0] / size[0]), int(x * drawn[1] / size[1])


def colours(features: Tensor) -> np.ndarray:
    """Three principal components of a map (1, C, h, w) as RGB between 0 and 1, (h, w, 3)."""
    _, c, h, w = features.shape
    tokens = features[0].reshape(c, -1).T.double()
    tokens = tokens - tokens.mean(0)
    _, _, axes = torch.linalg.svd(tokens, full_matrices=False)
    found = tokens @ axes[:3].T
    found = torch.nn.functional.pad(found, (0, 3 - found.shape[1]))
    low, high = found.quantile(0.02, dim=0), found.quantile(0.98, dim=0)
    return ((found - low) / (high - low).clamp_min(1e-9)).clamp(0, 1).reshape(h, w, 3).numpy()


def attention_of(backbone: HPViT, x: Tensor, point: tuple[int, int]) -> list[tuple[int, np.ndarray, tuple]]:
    """For each stage with blocks its stride, the attention of the token at a point over the map, and that token.

    Tokens that are in other sequences have NaN. What goes to prefix tokens is left out. Stages come from the finest;
    those whose attention cannot be had, as in the windows of SAM's blocks, are left out.
    """
    found = []
    run_stage = backbone.run_stage

    def watched(stage: Stage, tokens: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
        layers = backbone.blocks[stage.stop - 1].modules() if stage.stop > stage.start else ()
        layer = next((m for m in layers if hasattr(m, 'fused_attn') and hasattr(m, 'attn_drop')), None)
        if layer is None:
            return run_stage(stage, tokens, prefix)
        size, heads = tuple(tokens.shape[1:3]), []
        token = tuple(min(p // stage.stride, side - 1) for p, side in zip(point, size, strict=True))
        fused, layer.fused_attn = layer.fused_attn, False

        def keep(_, args: tuple[Tensor]) -> None:
            weights = args[0]  # SAM's blocks have sequences and heads in one axis
            weights = weights if weights.dim() == 4 else weights.unflatten(0, (-1, layer.num_heads))
            heads.append(weights.mean(1))

        hook = layer.attn_drop.register_forward_pre_hook(keep)
        try:
            result = run_stage(stage, tokens, prefix)
        finally:
            hook.remove()
            layer.fused_attn = fused
        weights = _seen_from(token, heads, stage.layout, size, backbone.num_prefix_tokens)
        if weights is not None:
            found.append((stage.stride, weights, token))
        return result

    backbone.run_stage = watched
    try:
        backbone(x)
    finally:
        del backbone.run_stage
    return sorted(found, key=lambda one: one[0])


def _seen_from(
    token: tuple[int, int], heads: list[Tensor], layout: Layout, size: tuple[int, int], prefix: int
) -> np.ndarray | None:
    """Attention of one token over a map, out of that of all sequences, (some sequences, P + L, P + L) a call."""
    places = partition(torch.arange(size[0] * size[1]).reshape(1, *size, 1), layout)
    lengths = [prefix + place.shape[2] for place in places for _ in range(place.shape[1])]
    if [part.shape[-1] for part in heads for _ in range(len(part))] != lengths:
        return None
    groups = regroup(heads, layout, size, 1, prefix)
    maps = [torch.full((*place.shape[:3], 1), torch.nan) for place in places]
    for group, place, drawn in zip(groups, places, maps, strict=True):
        hits = (place[0, :, :, 0] == token[0] * size[1] + token[1]).nonzero()
        if len(hits):
            sequence, index = hits[0].tolist()
            drawn[0, sequence, :, 0] = group[0, sequence, index, prefix:]
    return restore(maps, layout, size)[0, :, :, 0].numpy()


def draw_levels(
    image: np.ndarray, name: str, ours: list[tuple[int, Tensor]], plain: Tensor | None, out: Path
) -> None:
    """One row: the image, each level with its stride, the plain ViT's map."""
    panels = [('image', image)]
    panels += [(f'{name}, 1/{stride}', colours(level)) for stride, level in ours]
    if plain is not None:
        panels.append(('plain ViT, 1/16', colours(plain)))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(SIDE * len(panels), SIDE * image.shape[0] / image.shape[1] + 0.3)
    )
    for axis, (title, picture) in zip(axes, panels, strict=True):
        axis.imshow(picture, interpolation='nearest')
        axis.set_title(title)
        axis.axis('off')
    _save(figure, out)


def draw_attention(image: np.ndarray, found: list, point: tuple[int, int], out: Path) -> None:
    """One picture a stage: attention over the image, which is grey where the token does not look."""
    height, width = image.shape[:2]
    figure, axes = plt.subplots(
        1, len(found), figsize=(SIDE * len(found), SIDE * height / width + 0.3), squeeze=False
    )
    grey = np.repeat(image.mean(-1, keepdims=True) / 255 * 0.6 + 0.2, 3, axis=-1)
    for axis, (stride, weights, token) in zip(axes[0], found, strict=True):
        axis.imshow(grey)
        reached = ~np.isnan(weights)
        ys, xs = reached.nonzero()
        values = weights[reached]
        # Tokens of a grid lie apart: a square for each, as large as the grid is wide.
        pitch = np.sqrt(height * width / len(values))
        size = (0.75 * pitch / width * SIDE * 72) ** 2
        places = (xs + 0.5) * stride, (ys + 0.5) * stride
        order = np.argsort(values)
        shade = np.clip(values / np.quantile(values, 0.99), 0, 1)
        axis.scatter(
            places[0][order],
            places[1][order],
            c=shade[order],
            s=size,
            marker='s',
            cmap='inferno',
            alpha=0.25 + 0.7 * shade[order],
        )
        axis.plot(*((t + 0.5) * stride for t in token[::-1]), 'c+', markersize=14, markeredgewidth=2.5)
        axis.set_title(f'stage at 1/{stride}')
        axis.set_xlim(0, width)
        axis.set_ylim(height, 0)
        axis.axis('off')
    _save(figure, out)


def _save(figure, out: Path) -> None:
    figure.tight_layout(pad=0.4)
    figure.savefig(out, dpi=100, bbox_inches='tight')
    plt.close(figure)
    print(out)


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    mpl.use('Agg')
    for name in (args.image, args.config, args.checkpoint):
        if name and not Path(name).is_file():
            stop(f'{str(name)!r} does not exist')
    try:
        whole = read_image(args.image)
    except UnreadableError as error:
        stop(f'{str(args.image)!r}: {error}')
    image = shrink(whole, args.max_side)
    point = place_of(args.point, whole.shape[:2], image.shape[:2])
    backbone, plain, mean, std = load_backbones(args)
    x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - mean) / std
    args.out.mkdir(parents=True, exist_ok=True)
    levels = sorted(backbone.out_indices)
    maps = dict(zip(backbone.out_indices, backbone(x), strict=True))
    ours = [(STRIDES[i], maps[i]) for i in levels]
    draw_levels(image, type(backbone).__name__, ours, plain and plain(x)[0], args.out / 'levels.png')
    if found := attention_of(backbone, x, point):
        draw_attention(image, found, point, args.out / 'attention.png')
    else:
        print(f'Attention is not drawn: the blocks of {backbone.plain} do not show theirs')
    if args.checkpoint:
        cfg = read_config(args.config)
        _, picture = KINDS[cfg.default_scope](args, cfg)(args.image, whole)
        cv2.imwrite(str(args.out / 'prediction.png'), picture[..., ::-1])
        print(args.out / 'prediction.png')


if __name__ == '__main__':
    run(main)
