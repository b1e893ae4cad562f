# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Draw the architecture: ``python docs/architecture.py`` writes ``docs/architecture.svg``."""

from pathlib import Path

WIDTH, HEIGHT, SIDE, TOP, GAP = 1000, 430, 112, 88, 200
ATTENDED, LINE = '#2b6cb0', '#444'
# Name, blocks, tokens on a side of the sketch, distance of the tokens of one sequence, colour.
STAGES = (
    ('1/4', 'blocks 1-2', 16, 4, '#d7e8fb'),
    ('1/8', 'blocks 3-4', 8, 2, '#cfe9dc'),
    ('1/16', 'blocks 5-10', 4, 1, '#fbeccb'),
    ('1/32', 'blocks 11-12', 2, 1, '#f6d6d0'),
)
LEGEND = (
    'tokens of one attention sequence, as far apart as in pre-training down to 1/16: '
    'each of the 16 (then 4, then 1) grids is the plain ViT on a shifted image'
)


def text(x: float, y: float, words: str, size: int = 12, anchor: str = 'middle', bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ''
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}"{weight}>{words}</text>'


def rect(x: float, y: float, w: float, h: float, fill: str, stroke: str = '#666', rx: int = 0) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{stroke}" rx="{rx}"/>'
    )


def arrow(path: str) -> str:
    return f'<path d="{path}" stroke="{LINE}" marker-end="url(#to)"/>'


def tokens(x: float, count: int, distance: int, colour: str) -> list[str]:
    """The token map of a stage with one attention sequence marked."""
    cell = SIDE / count
    parts = []
    for row in range(count):
        for column in range(count):
            attended = row % distance == 1 % distance and column % distance == 2 % distance
            fill = ATTENDED if attended else colour
            parts.append(rect(x + column * cell, TOP + row * cell, cell, cell, fill, '#fff'))
    return [*parts, rect(x, TOP, SIDE, SIDE, 'none')]


def draw() -> str:
    middle, below = TOP + SIDE / 2, TOP + SIDE + 62
    left = [210 + GAP * i for i in range(len(STAGES))]
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif">',
        '<title>HPViT: the blocks of a plain ViT, split over four resolutions</title>',
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker></defs>',
        rect(0, 0, WIDTH, HEIGHT, '#fff', 'none'),
        text(500, 28, 'HPViT: the 12 blocks of a plain ViT, split over four resolutions', 17, bold=True),
        rect(24, TOP, 96, SIDE, '#eee'),
        text(72, middle - 4, 'image', 14),
        text(72, middle + 16, 'H x W'),
        arrow(f'M122 {middle:g} H{left[0] - 8}'),
        text(162, middle - 24, 'patch kernel'),
        text(162, middle - 9, '16x16 kept,'),
        text(162, middle + 19, 'stride 4'),
    ]
    for i, (name, blocks, count, distance, colour) in enumerate(STAGES):
        x, centre, stride = left[i], left[i] + SIDE / 2, 4 * 2**i
        svg += tokens(x, count, distance, colour)
        svg += [text(centre, TOP - 26, name, 14, bold=True), text(centre, TOP - 9, blocks)]
        if i:
            svg.append(arrow(f'M{left[i - 1] + SIDE + 4} {middle:g} H{x - 8}'))
            svg.append(text((left[i - 1] + SIDE + x - 4) / 2, middle - 9, '2x2 pool'))
        svg.append(arrow(f'M{centre:g} {TOP + SIDE + 4} V{below - 4}'))
        svg.append(text(centre + 8, TOP + SIDE + 34, 'LayerNorm', anchor='start'))
        svg.append(rect(x, below, SIDE, 34, colour, rx=4))
        svg.append(text(centre, below + 22, f'C x H/{stride} x W/{stride}'))
        svg.append(arrow(f'M{centre:g} {below + 36} V{below + 64}'))
    wide = left[-1] + SIDE - left[0]
    svg.append(rect(left[0], below + 66, wide, 36, '#f4f4f4', rx=4))
    svg.append(text(left[0] + wide / 2, below + 89, 'stock FPN + Mask R-CNN, or UPerNet', 14))
    svg += [rect(24, HEIGHT - 30, 12, 12, ATTENDED), text(44, HEIGHT - 20, LEGEND, anchor='start'), '</svg>']
    return '\n'.join(svg) + '\n'


if __name__ == '__main__':
    Path(__file__).with_suffix('.svg').write_text(draw())
