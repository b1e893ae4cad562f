# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The report of loading: what happened to every weight of a checkpoint."""

import re
from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """What happened to every weight.

    Attributes:
        source: File, URL or timm name of the weights.
        plain: timm name of the plain ViT.
        naming: Naming of the file (``'timm'``, ``'clip'``, ``'transformers'``, ...).
        prefix: Prefix of the encoder's names in the file.
        loaded: Parameters of the backbone that were copied unchanged.
        resized: Name, shape in the source, shape in the backbone.
        cast: Number of weights and their type, for weights that are not float32.
        zero: Parameters that the file omits because they are zero.
        new: Newly initialised parameters, which the plain ViT or the file lacks.
        dropped: Name in the source, and why it is not used.
        images: Mean and standard deviation for normalising images, on a scale of 0 to 255, with the timm tags that
            expect them. Several entries if tags differ.
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
        lines += [
            ('resized', 1, f'{name}: {old} -> {new}{_adapted(name, old, new)}')
            for name, old, new in self.resized
        ]
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


def _adapted(name: str, old: tuple[int, ...], new: tuple[int, ...]) -> str:
    if name != 'patch_embed.proj.weight' or old[1] == new[1]:
        return ''
    return f' (patch kernel adapted from {old[1]} to {new[1]} channels)'


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
