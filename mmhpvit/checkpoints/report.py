# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What became of every weight of a checkpoint."""

import re
from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """What became of every weight.

    Attributes:
        source: File, URL or timm name that the weights came from.
        plain: timm name of the plain ViT.
        naming: Whose names the file has (``'timm'``, ``'clip'``, ``'transformers'``, ...).
        prefix: What stands before the names of the encoder in the file.
        loaded: Names of the backbone's parameters that took a tensor as it is.
        resized: Name, shape in the source, shape in the backbone.
        cast: Number of weights and type that came in another floating-point type than the backbone has.
        zero: Names of parameters that the file leaves out because they are zero there.
        new: Names of the backbone's parameters that the plain ViT, or the file, does not have.
        dropped: Name in the source and the reason why the backbone has no place for it.
        images: What images must be normalised with, mean and standard deviation on a scale of 0 to 255, and the
            tags of timm's weights of this name that expect it; several where that depends on who trained.
    """

    source: str
    plain: str
    naming: str = 'timm'
    prefix: str = ''
    loaded: list[str] = field(default_factory=list)
    resized: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    cast: list[tuple[int, str]] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    images: dict[tuple[tuple[float, ...], tuple[float, ...]], list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """The report as a table, one line for each group and for each exception."""
        lines = [('loaded', len(self.loaded), ', '.join(abbreviate(self.loaded)))]
        lines += [('resized', 1, f'{name}: {old} -> {new}') for name, old, new in self.resized]
        lines += [('cast', count, f'from {kind}') for count, kind in self.cast]
        lines += [('zero', len(self.zero), ', '.join(self.zero))] if self.zero else []
        lines += [('new', len(self.new), ', '.join(abbreviate(self.new)))] if self.new else []
        for reason in dict.fromkeys(reason for _, reason in self.dropped):
            names = [name for name, r in self.dropped if r == reason]
            lines.append(('dropped', len(names), f'{_shortened(abbreviate(names))} ({reason})'))
        table = '\n'.join(f'  {group:<8} {count:>4}  {text}' for group, count, text in lines)
        where = f', under {self.prefix}' if self.prefix else ''
        text = f'Weights of {self.plain} from {self.source} (names of {self.naming}{where}):\n{table}'
        for (mean, std), tags in self.images.items():
            whose = f' ({", ".join(tags)})' if len(self.images) > 1 else ''
            text += f'\n  images: mean={list(mean)}, std={list(std)}{whose}'
        if len(self.images) > 1:
            text += '\n  which of these depends on who trained the weights'
        return text


def _shortened(names: list[str]) -> str:
    return ', '.join(names) if len(names) <= 12 else f'{", ".join(names[:12])}, ...'


def abbreviate(names: list[str]) -> list[str]:
    """Fold ``blocks.0.x, blocks.1.x, ...`` into ``blocks.0-11.x`` or ``blocks.0-11 (12 weights each)``."""
    blocks: dict[int, list[str]] = {}
    short = []
    for name in names:
        block = re.match(r'blocks\.(\d+)\.(.+)', name)
        if block:
            blocks.setdefault(int(block[1]), []).append(block[2])
        else:
            short.append(name)
    indices = sorted(blocks)
    alike = all(blocks[i] == blocks[indices[0]] for i in indices)
    if len(indices) < 2 or not alike or indices != list(range(indices[0], indices[-1] + 1)):
        return list(names)
    each, span = blocks[indices[0]], f'blocks.{indices[0]}-{indices[-1]}'
    if len(each) <= 3:
        return [*short, *(f'{span}.{rest}' for rest in each)]
    return [*short, f'{span} ({len(each)} weights each, such as {each[0]})']
