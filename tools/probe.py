# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What a choice of depths or attention costs in accuracy, in minutes: a linear layer on frozen features.

    python tools/probe.py DATA WEIGHTS hpvit:vit_tiny_patch16_224 plain:vit_tiny_patch16_224 --size 768x1024

DATA has images/train, images/test (.jpg) and annotations of the same names (.png, 255 is ignored), and a
classes.json with the names as "classes". A backbone is hpvit:NAME with options as :name=value, or plain:NAME, which
is timm's own model with levels after each quarter of its blocks. dilation=(8,4,2,1) is an option for this tool
alone: it spreads the grids of the stages further than the patches of pre-training.

Each level of the pyramid is normalised by its out norm, read between its tokens, and one linear layer on all of them
is trained per seed, on another four fifths of the training images. Rows that are in --out already are not run again.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F
from bench.counting import count_flops
from bench.models import build
from mmseg.evaluation import IoUMetric
from torch import Tensor, nn
from tqdm import tqdm

from mmhpvit import HPViT, load_plain_weights
from mmhpvit.layouts import Layout
from mmhpvit.weights import plain_weights

PIXELS, STEPS, BATCH = 4000, 1500, 2048


class PlainLevels(nn.Module):
    """timm's own plain ViT with four levels, after each quarter of its blocks, all at 1/16."""

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        self.vit = timm.create_model(name, num_classes=0, global_pool='', dynamic_img_size=True)
        found, _, _ = plain_weights(self.vit, name, weights)
        self.vit.load_state_dict(found)
        depth = len(self.vit.blocks)
        self.after = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.vit.forward_intermediates(x, self.after, norm=True, intermediates_only=True)


def frozen(spec: str, weights: str, size: tuple[int, int]) -> nn.Module:
    """A backbone with pre-trained weights."""
    kind, name, *options = spec.split(':')
    if kind == 'plain':
        return PlainLevels(name, weights).eval()
    dilation = next((o for o in options if o.startswith('dilation=')), None)
    model = build(':'.join([kind, name, *(o for o in options if o != dilation)]), size)
    load_plain_weights(model, weights)
    if dilation:
        steps = json.loads(dilation.partition('=')[2].replace('(', '[').replace(')', ']'))
        if len(steps) != 4:
            sys.exit(f'error: {dilation}: expected four numbers, one a stage')
        chosen = steps[model.first_stage :]
        model.stages = [
            replace(s, layout=Layout(None, d)) for s, d in zip(model.stages, chosen, strict=False)
        ]
    return model.eval()


class Images:
    """Images at one size, normalised for a plain ViT as timm says, with their labels at the original size."""

    def __init__(self, folder: Path, split: str, count: int, size: tuple[int, int], name: str) -> None:
        self.paths = sorted((folder / 'images' / split).glob('*.jpg'))
        if not self.paths:
            sys.exit(f'error: no .jpg in {folder / "images" / split}')
        # Frames of a film that follow each other say the same.
        self.paths = [self.paths[i] for i in np.linspace(0, len(self.paths) - 1, count).round().astype(int)]
        self.labels = folder / 'annotations' / split
        self.size = size
        config = timm.get_pretrained_cfg(name)
        self.mean, self.std = (255 * torch.tensor(v).reshape(1, 3, 1, 1) for v in (config.mean, config.std))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.paths[index]
        image = cv2.resize(cv2.imread(str(path)), self.size[::-1], interpolation=cv2.INTER_LINEAR)
        image = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)[None].float()
        label = cv2.imread(str(self.labels / f'{path.stem}.png'), cv2.IMREAD_UNCHANGED)
        return (image - self.mean) / self.std, torch.from_numpy(label).long()


def features_at(levels: list[Tensor], places: Tensor) -> Tensor:
    """All levels of one image read at places (n, 2) in [-1, 1], bilinearly: (n, channels of all levels)."""
    grid = places[None, None]
    options = dict(mode='bilinear', padding_mode='border', align_corners=False)
    return torch.cat([F.grid_sample(level, grid, **options)[0, :, 0].T for level in levels], dim=1)


@torch.no_grad()
def sample(model: nn.Module, images: Images, progress) -> tuple[Tensor, Tensor]:
    """Features (images, PIXELS, C) in half precision and labels (images, PIXELS) of random labelled pixels."""
    generator = torch.Generator().manual_seed(0)
    features, labels = [], []
    for image, label in progress(images):
        ys, xs = torch.nonzero(label != 255, as_tuple=True)
        chosen = torch.randint(len(ys), (PIXELS,), generator=generator)
        ys, xs = ys[chosen], xs[chosen]
        h, w = label.shape
        places = torch.stack([(2 * xs + 1) / w - 1, (2 * ys + 1) / h - 1], dim=1)
        features.append(features_at(model(image), places).half())
        labels.append(label[ys, xs])
    return torch.stack(features), torch.stack(labels)


def train_head(features: Tensor, labels: Tensor, classes: int, seed: int) -> nn.Linear:
    """A linear layer by AdamW with a cosine schedule; features are standardised, which is folded into it."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(features), generator=generator)[: max(1, 4 * len(features) // 5)]
    features, labels = features[kept].flatten(0, 1), labels[kept].flatten()
    part = features[:: max(1, len(features) // 50000)].float()
    centre, spread = part.mean(0), part.std(0) + 1e-6
    head = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(features), (BATCH,), generator=generator)
        loss = F.cross_entropy(head((features[batch].float() - centre) / spread), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        head.weight /= spread
        head.bias -= head.weight @ centre
    return head


@torch.no_grad()
def evaluate(model: nn.Module, heads: list[nn.Linear], images: Images, classes: int, progress) -> np.ndarray:
    """IoU of each class in percent, (heads, classes), by mmseg's own count."""
    areas = [[0, 0, 0, 0] for _ in heads]
    for image, label in progress(images):
        levels = model(image)
        widths = [level.shape[1] for level in levels]
        for i, head in enumerate(heads):
            # A linear layer and interpolation may change places: each level is mapped at its own resolution.
            parts = zip(levels, head.weight.split(widths, dim=1), strict=True)
            maps = [F.conv2d(level, weight[:, :, None, None]) for level, weight in parts]
            sizes = dict(size=label.shape, mode='bilinear', align_corners=False)
            scores = sum(F.interpolate(m, **sizes) for m in maps) + head.bias[:, None, None]
            found = IoUMetric.intersect_and_union(scores[0].argmax(0), label, classes, 255)
            areas[i] = [total + one for total, one in zip(areas[i], found, strict=True)]
    return np.stack([100 * IoUMetric.total_area_to_metrics(*a)['IoU'] for a in areas])


def table(rows: list[dict]) -> str:
    """The rows in Markdown, mean and standard deviation over seeds."""
    lines = ['| backbone | size | GFLOP | mIoU |', '| --- | --- | --- | --- |']
    for row in rows:
        spread = f' ± {stdev(row["miou"]):.1f}' if len(row['miou']) > 1 else ''
        lines.append(
            f'| {row["backbone"]} | {row["size"]} | {row["flops"] / 1e9:.1f} | {mean(row["miou"]):.1f}{spread} |'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', type=Path)
    parser.add_argument('weights', help='file of the plain ViT')
    parser.add_argument('backbones', nargs='+')
    parser.add_argument('--size', default='352x480', help='HEIGHTxWIDTH of the images; default: %(default)s')
    parser.add_argument('--train', type=int, default=90, help='training images; default: %(default)s')
    parser.add_argument('--test', type=int, default=60, help='test images; default: %(default)s')
    parser.add_argument('--seeds', type=int, default=3, help='heads that are trained; default: %(default)s')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/probe.jsonl'), help='default: %(default)s'
    )
    args = parser.parse_args()
    if not Path(args.weights).is_file():
        sys.exit(f'error: weights {args.weights!r} do not exist')
    if not (args.data / 'classes.json').is_file():
        sys.exit(f'error: {args.data}/classes.json does not exist; see --help for what DATA has')
    size = tuple(int(side) for side in args.size.split('x'))
    names = json.loads((args.data / 'classes.json').read_text())['classes']
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    rows = []
    for spec in args.backbones:
        key = dict(backbone=spec, data=args.data.name, size=args.size, train=args.train, test=args.test)
        key |= dict(seeds=args.seeds, weights=Path(args.weights).name)
        row = next((r for r in done if key.items() <= r.items()), None)
        if row is None:
            start = time.time()
            row = key | run(spec, args, size, names) | dict(torch=torch.__version__, timm=timm.__version__)
            row['minutes'] = (time.time() - start) / 60
            with args.out.open('a') as file:
                file.write(json.dumps(row) + '\n')
        rows.append(row)
    print(table(rows))


def run(spec: str, args: argparse.Namespace, size: tuple[int, int], names: list[str]) -> dict:
    """Probe one backbone: operations of a forward pass, mIoU and IoU of each class for every seed."""

    def progress(images):
        return tqdm(images, desc=spec[-40:], disable=not sys.stderr.isatty())

    torch.manual_seed(0)
    model = frozen(spec, args.weights, size)
    name = model.plain if isinstance(model, HPViT) else spec.split(':')[1]
    train = Images(args.data, 'train', args.train, size, name)
    test = Images(args.data, 'test', args.test, size, name)
    features, labels = sample(model, train, progress)
    heads = [train_head(features, labels, len(names), seed) for seed in range(args.seeds)]
    iou = evaluate(model, heads, test, len(names), progress)
    flops = sum(sum(kinds.values()) for kinds in count_flops(model, size).values())
    by_class = {name: [round(float(v), 2) for v in iou[:, i]] for i, name in enumerate(names)}
    return dict(flops=flops, miou=[float(v) for v in np.nanmean(iou, axis=1)], iou=by_class)


if __name__ == '__main__':
    main()
