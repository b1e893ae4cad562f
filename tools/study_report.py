# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Tables and plot of tools/study.py's results, written into a page between its markers."""

import re
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

DATA = {'camvid': 'CamVid', 'coco_mini': 'COCO, 12 supercategories', 'nuclei': 'nuclei, inside and boundary'}
SMALL = ('pole', 'sign_symbol', 'pedestrian', 'bicyclist')


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def short(backbone: str) -> str:
    """``hpvit:NAME:option=value`` as ``hpvit option=value``."""
    kind, _, *options = backbone.split(':')
    return ' '.join([kind, *options])


def by_backbone(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Rows by backbone and data set."""
    found = {}
    for row in rows:
        found.setdefault(row['backbone'], {})[row['data']] = row
    return found


def cost(found: dict[str, dict], plain: dict[str, dict]) -> float:
    """Operations over those of the plain ViT, on the first data set that both have."""
    name = next(name for name in plain if name in found)
    return found[name]['flops'] / plain[name]['flops']


def frozen_table(rows: list[dict]) -> str:
    """One row a backbone, by cost."""
    groups = by_backbone(rows)
    plain = next(
        found for backbone, found in groups.items() if backbone.count(':') == 1 and 'plain' in backbone
    )
    lines = [
        '| backbone | operations | CamVid | its small classes | COCO-mini | its persons | nuclei | their boundary |'
    ]
    lines.append('| --- ' * 8 + '|')
    for backbone, found in sorted(groups.items(), key=lambda item: cost(item[1], plain)):
        cells = [f'`{short(backbone)}`', f'{cost(found, plain):.1f}']
        for name, classes in (('camvid', SMALL), ('coco_mini', ('person',)), ('nuclei', ('boundary',))):
            if name not in found:
                cells += ['', '']
                continue
            iou = found[name]['iou']
            part = [mean(iou[c][seed] for c in classes) for seed in range(len(found[name]['miou']))]
            cells += [spread(found[name]['miou']), spread(part)]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def finetuned_table(rows: list[dict]) -> str:
    """One row for each task and backbone: the rate that was chosen, and each metric over the seeds."""
    groups = {}
    for row in rows:
        if row['fold'] == 'test':
            groups.setdefault((row['task'], row['backbone']), []).append(row)
    lines = ['| task | backbone | seeds | rate | metrics |', '| --- | --- | --- | --- | --- |']
    for (task, backbone), found in groups.items():
        metrics = ', '.join(
            f'{name.removeprefix("coco/").removeprefix("accuracy/")} {spread(_percent(name, found))}'
            for name in found[0]['metrics']
        )
        lines.append(f'| {task} | {backbone} | {len(found)} | {found[0]["rate"]:g} | {metrics} |')
    return '\n'.join(lines)


def _percent(name: str, rows: list[dict]) -> list[float]:
    scale = 100 if name.startswith('coco/') else 1
    return [scale * row['metrics'][name] for row in rows]


def frontier(rows: list[dict], out: Path) -> None:
    """Accuracy over cost, one panel a data set; the line joins what nothing cheaper beats."""
    groups = by_backbone(rows)
    plain = next(
        found for backbone, found in groups.items() if backbone.count(':') == 1 and 'plain' in backbone
    )
    figure = Figure(figsize=(16, 6.5), layout='constrained')
    for axis, (name, title) in zip(figure.subplots(1, 3), DATA.items(), strict=True):
        points = [
            (cost(found, plain), mean(found[name]['miou']), backbone)
            for backbone, found in groups.items()
            if name in found
        ]
        points.sort(key=lambda point: (round(point[0], 2), -point[1]))
        best, steps = float('-inf'), []
        for x, y, backbone in points:
            ours = backbone.startswith('hpvit')
            axis.plot(x, y, 'o' if ours else 's', color='tab:blue' if ours else 'tab:orange')
            if y > best:
                best = y
                steps.append((x, y))
                axis.annotate(short(backbone), (x, y), xytext=(4, 4), textcoords='offset points', fontsize=7)
        axis.plot(*zip(*steps, strict=True), color='grey', linewidth=0.8, zorder=0)
        axis.set_xscale('log')
        axis.set_xticks([1, 2, 4, 8], ['1', '2', '4', '8'])
        axis.minorticks_off()
        axis.margins(x=0.25)
        axis.set_xlabel('operations over the plain ViT')
        axis.set_ylabel('mIoU')
        axis.set_title(title)
    figure.suptitle('frozen features and a linear layer; circles: HPViT, squares: plain ViT')
    figure.savefig(out, dpi=90)


def write_page(page: Path, frozen: list[dict], finetuned: list[dict]) -> None:
    """Put the tables between the markers of a page, and the plot beside it."""
    text = page.read_text()
    for marker, table in (('frozen', frozen_table(frozen)), ('finetuned', finetuned_table(finetuned))):
        text, count = re.subn(
            rf'(<!-- {marker} -->\n).*?(<!-- /{marker} -->)',
            lambda m, t=table: f'{m[1]}{t}\n{m[2]}',
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f'{page} has no place <!-- {marker} --> ... <!-- /{marker} -->')
    page.write_text(text)
    frontier(frozen, page.with_name('study.png'))
