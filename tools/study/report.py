# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Tables and plot of tools/study/run.py's results, written into a page between its markers."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean, stdev

import torch
from bench.counting import count_flops
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.registry import MODELS
from torch import nn

import study.backbones  # noqa: F401 -- registers backbones
from study.finetune import BACKBONES, TASKS, VIT, backbone_of, check_row

DATA = {'camvid': 'CamVid', 'coco_mini': 'COCO-mini', 'nuclei': 'nuclei'}
# What is drawn of a training, and the size of the images that it is tested on.
TRAINED = {'camvid': 'mIoU', 'coco_mini': 'coco/person_precision', 'nuclei': 'coco/segm_mAP'}
METRICS = {
    f'coco/{kind}_mAP{end}': f'{what} AP{title}'
    for kind, what in (('bbox', 'box'), ('segm', 'mask'))
    for end, title in (('', ''), ('_50', ' at 0.5'), ('_s', ' small'))
} | {'coco/person_precision': 'mask AP of persons', 'accuracy/top1': 'top-1', 'accuracy/top5': 'top-5'}
TEST_SIZE = {'caltech101': (160, 160), 'camvid': (360, 480), 'coco_mini': (384, 384), 'nuclei': (320, 320)}
# What the page and the README begin with: names of trainings, and the same frozen.
SUMMARY = {
    'plain': f'plain:{VIT}:after=(12,)',
    'plain-after': f'plain:{VIT}',
    'plain-blocks': None,
    'plain-x2': f'plain:{VIT}:upsample=2',
    'two-scale-embedding': f'two-scale:{VIT}:fine_depths=(0,0)',
    'two-scale-embedding-middle': f'two-scale:{VIT}:fine_depths=(0,0):middle_depth=6',
    'two-scale': f'two-scale:{VIT}',
    'two-scale-middle': f'two-scale:{VIT}:middle_depth=6',
    'hpvit-spacing2': f'hpvit:{VIT}:grid_spacing=2',
    'hpvit': f'hpvit:{VIT}',
}
IN_WORDS = {
    'plain-blocks': "plain ViT, mmseg's `Feature2Pyramid` on the same four",
    'plain-x2': 'plain ViT, image enlarged twice',
}
USUAL = 'vit_base_patch16_224', (512, 512)
MARKS = {'hpvit': ('o', 'tab:blue'), 'two-scale': ('D', 'tab:green'), 'plain': ('s', 'tab:orange')}
SMALL = ('pole', 'sign_symbol', 'pedestrian', 'bicyclist')
# Classes whose mean IoU is told beside the mIoU.
PARTS = {'camvid': [SMALL], 'coco_mini': [('person',)], 'nuclei': [('nucleus',), ('boundary',)]}


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def paired(values: list[float], plain: list[float]) -> list[float]:
    """Differences seed by seed: both heads of a seed were trained on the same pixels of the same images."""
    return [value - other for value, other in zip(values, plain, strict=True)]


def short(backbone: str) -> str:
    """``hpvit:NAME:option=value`` as ``hpvit option=value``."""
    kind, _, *options = backbone.split(':')
    return ' '.join([kind, *options])


def by_backbone(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Rows by backbone and data set.

    Raises:
        ValueError: Two rows of one backbone on one data set, such as at two sizes.
    """
    found = {}
    for row in rows:
        one = found.setdefault(row['backbone'], {})
        if row['data'] in one:
            raise ValueError(f'{row["backbone"]} has two results on {row["data"]}; keep one in frozen.jsonl')
        one[row['data']] = row
    return found


def plain_of(groups: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """The plain ViT without options, by data set."""
    return next(found for name, found in groups.items() if name.startswith('plain:') and name.count(':') == 1)


def cost(found: dict[str, dict], plain: dict[str, dict], data: str) -> float:
    """Operations over those of the plain ViT on the same images."""
    return found[data]['flops'] / plain[data]['flops']


def costs(found: dict[str, dict], plain: dict[str, dict]) -> list[float]:
    """At the size of the photographs, which have one, and at that of the nuclei."""
    sizes = ('camvid', 'coco_mini'), ('nuclei',)
    first = (next((data for data in group if data in found and data in plain), None) for group in sizes)
    return [cost(found, plain, data) for data in first if data]


def frozen_table(rows: list[dict]) -> str:
    """One row a backbone, by cost."""
    groups = by_backbone(rows)
    plain = plain_of(groups)
    lines = [
        '| backbone | operations | CamVid | its small classes | COCO-mini | its persons | nuclei | inside, boundary |'
    ]
    lines.append('| --- ' * 8 + '|')
    for backbone, found in sorted(groups.items(), key=lambda item: costs(item[1], plain)):
        cells = [f'`{short(backbone)}`', ' / '.join(f'{x:.1f}' for x in costs(found, plain))]
        for name, parts in PARTS.items():
            if name not in found:
                cells += ['', '']
                continue
            miou, iou = found[name]['miou'], found[name]['iou']
            part = [mean(mean(iou[c]) for c in classes) for classes in parts]
            cell = spread(miou)
            if found is not plain and name in plain:
                over = spread(paired(miou, plain[name]['miou']))
                cell += f' ({over})' if over.startswith('-') else f' (+{over})'
            cells += [cell, ', '.join(f'{value:.1f}' for value in part)]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def finetuned_table(rows: list[dict]) -> str:
    """A table for each task with one row a backbone: its cost, the rate that was chosen, each metric over the seeds."""
    lines, last = [], None
    for (task, backbone), found in by_training(rows).items():
        names = [name for name in TASKS[task][1] if name in found[0]['metrics']]
        if task != last:
            titles = [task, 'operations', 'seeds', 'rate', *(METRICS.get(name, name) for name in names)]
            lines += [''] * bool(lines) + [f'| {" | ".join(titles)} |', '| --- ' * len(titles) + '|']
            last = task
        cells = [backbone, f'{finetuned_cost(task, backbone):.1f}', str(len(found)), f'{found[0]["rate"]:g}']
        cells += [spread(percent(name, found)) for name in names]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def summary_table(frozen: list[dict], finetuned: list[dict]) -> str:
    """The backbones that one chooses between: what they cost, trained and frozen on all data sets."""
    groups, trained = by_backbone(frozen), by_training(finetuned)
    titles = ['backbone', 'operations of ViT-B', 'of ViT-Ti']
    titles += [f'trained: {DATA["nuclei"]}', DATA['camvid'], f'{DATA["coco_mini"]}, persons']
    titles += [f'frozen: {DATA["nuclei"]}', DATA['camvid'], DATA['coco_mini']]
    lines = [f'| {" | ".join(titles)} |', '| --- ' * len(titles) + '|']
    order = 'nuclei', 'camvid', 'coco_mini'
    plain = usual_flops('plain')
    for name, spec in SUMMARY.items():
        found = groups.get(spec, {})
        cells = [_named(name), f'{usual_flops(name) / plain:.1f}', f'{finetuned_cost("nuclei", name):.1f}']
        for data in order:
            rows = trained.get((data, name))
            cells.append(spread(percent(TRAINED[data], rows)) if rows else '')
        cells += [spread(found[data]['miou']) if data in found else '' for data in order]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _named(backbone: str) -> str:
    """A backbone as a config has it, or in words where none of the package is such."""
    if backbone in IN_WORDS:
        return IN_WORDS[backbone]
    kind, *options = BACKBONES[backbone].items()
    return ', '.join([f'`{kind[1]}`', *(f'`{key}={value}`' for key, value in options)])


@cache
def usual_flops(backbone: str) -> int:
    """Operations with a ViT and at a size that are usual."""
    plain, size = USUAL
    with torch.device('meta'):
        model = MODELS.build(BACKBONES[backbone] | dict(plain=plain))
    # Nobody looks at the weights.
    model = model.to_empty(device='cpu').eval()
    return sum(sum(kinds.values()) for kinds in count_flops(model, size).values())


def by_training(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Results that are reported, by task and backbone, in the order of the study.

    Raises:
        ValueError: A row of other options or another budget than the study has now, of two rates, or there twice.
    """
    groups = {(task, backbone): [] for task in TASKS for backbone in BACKBONES}
    for row in rows:
        task, backbone = row['task'], row['backbone']
        if row['fold'] != 'test':
            continue
        if (task, backbone) not in groups or row['seed'] in [
            other['seed'] for other in groups[task, backbone]
        ]:
            raise ValueError(f'{row["run"]} is none of the study or there twice; take it out')
        check_row(row)
        if any(row['rate'] != other['rate'] for other in groups[task, backbone]):
            raise ValueError(
                f'{row["run"]} has another rate than the other seeds; take it out and run it again'
            )
        groups[task, backbone].append(row)
    return {key: found for key, found in groups.items() if found}


def percent(name: str, rows: list[dict]) -> list[float]:
    """A metric of each row in percent."""
    scale = 100 if name.startswith('coco/') else 1
    return [scale * row['metrics'][name] for row in rows]


@cache
def finetuned_cost(task: str, backbone: str) -> float:
    """Operations of a backbone with its pyramid, over those of the plain ViT with its own, at a task's test size."""
    counts = [
        sum(sum(kinds.values()) for kinds in count_flops(_built(task, name), TEST_SIZE[task]).values())
        for name in (backbone, 'plain')
    ]
    return counts[0] / counts[1]


def _built(task: str, backbone: str) -> nn.Module:
    return MODELS.build(backbone_of(task, backbone)).eval()


Point = tuple[float, list[float], str | None]


def frontiers(frozen: list[dict], finetuned: list[dict], out: Path) -> None:
    """Accuracy over cost, one panel a data set: above of frozen features, below of trainings.

    What the summary has is numbered as in the legend, all else is grey; bars are standard deviations; the line joins
    what nothing cheaper beats.
    """
    groups = by_backbone(frozen)
    plain = plain_of(groups)
    named = {spec: name for name, spec in SUMMARY.items() if spec}
    figure = Figure(figsize=(15, 9), layout='constrained')
    axes = figure.subplots(3, 3, height_ratios=[1, 1, 0.3])
    panels = [
        [
            (cost(found, plain, name), paired(found[name]['miou'], plain[name]['miou']), named.get(backbone))
            for backbone, found in groups.items()
            if name in found and name in plain
        ]
        for name in DATA
    ]
    _draw(axes[0], panels, ['mIoU less that of four maps of the plain ViT'] * 3, 'frozen, a linear layer')
    trained = by_training(finetuned)
    panels = [
        [
            (
                finetuned_cost(task, backbone),
                percent(TRAINED[name], found),
                backbone if backbone in SUMMARY else None,
            )
            for (task, backbone), found in trained.items()
            if task == name
        ]
        for name in DATA
    ]
    _draw(axes[1], panels, [METRICS.get(TRAINED[name], TRAINED[name]) for name in DATA], 'fine-tuned')
    for axis, start in zip(axes[2], range(0, len(SUMMARY), -(-len(SUMMARY) // 3)), strict=True):
        part = list(SUMMARY)[start : start + -(-len(SUMMARY) // 3)]
        lines = (f'{list(SUMMARY).index(name) + 1:2d}  {_named(name).replace("`", "")}' for name in part)
        axis.text(0, 1, '\n'.join(lines), va='top', transform=axis.transAxes)
        axis.axis('off')
    figure.suptitle(
        'circles: HPViT, diamonds: TwoScaleViT, squares: plain ViT; grey: other options; bars: standard deviation\n'
        "operations are of ViT-Ti over the plain ViT's, below with its pyramid"
    )
    figure.savefig(out, dpi=90)


def _draw(axes: Sequence[Axes], panels: list[list[Point]], metrics: list[str], how: str) -> None:
    """A panel for each data set."""
    numbers = {name: i for i, name in enumerate(SUMMARY, 1)}
    for axis, points, metric, title in zip(axes, panels, metrics, DATA.values(), strict=True):
        axis.set_title(f'{title}: {how}')
        if not points:
            axis.text(0.5, 0.5, 'not run', ha='center', transform=axis.transAxes)
            axis.set_axis_off()
            continue
        best, steps = float('-inf'), []
        for x, values, name in sorted(points, key=lambda p: (round(p[0], 2), -mean(p[1]))):
            y = mean(values)
            if name:
                bar = stdev(values) if len(values) > 1 else 0
                mark, color = next(MARKS[kind] for kind in MARKS if name.startswith(kind))
                axis.errorbar(x, y, bar, fmt=mark, color=color, elinewidth=0.6, zorder=3)
                axis.annotate(str(numbers[name]), (x, y), xytext=(5, 4), textcoords='offset points')
            else:
                axis.plot(x, y, '.', color='lightgrey', zorder=1)
            if y > best:
                best = y
                steps.append((x, y))
        axis.plot(*zip(*steps, strict=True), color='grey', linewidth=0.8, zorder=0)
        axis.set_xscale('log')
        axis.set_xticks([1, 2, 4, 8], ['1', '2', '4', '8'])
        axis.minorticks_off()
        axis.margins(x=0.15)
        axis.set_xlabel('operations')
        axis.set_ylabel(metric)


def write_page(page: Path, frozen: list[dict], finetuned: list[dict]) -> None:
    """Put the tables between the markers of a page, and the plot beside it."""
    tables = dict(frozen=frozen_table(frozen), finetuned=finetuned_table(finetuned))
    write_tables(page, tables | dict(summary=summary_table(frozen, finetuned)))
    frontiers(frozen, finetuned, page.with_name('study.png'))


def write_tables(page: Path, tables: dict[str, str]) -> None:
    """Put tables between the markers of a page."""
    text = page.read_text()
    for marker, table in tables.items():
        text, count = re.subn(
            rf'(<!-- {marker} -->\n).*?(<!-- /{marker} -->)',
            lambda m, t=table: f'{m[1]}{t}\n{m[2]}',
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f'{page} has no place <!-- {marker} --> ... <!-- /{marker} -->')
    page.write_text(text)
