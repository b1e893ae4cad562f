# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What a checkpoint holds, and which plain ViTs of timm it fits."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import timm
import torch
from timm.models import is_model_in_modules
from torch import Tensor, nn

from .checkpoint import read_checkpoint
from .conversion import convert
from .hpvit import HPViT
from .namings import find_encoder, to_timm_names
from .plain import PREFIX_TOKENS, build_plain_vit
from .report import LoadReport
from .weights import load_plain_weights

# The files of timm that hold the ViTs that can be used.
PLAIN_FILES = (
    *('vision_transformer', 'deit', 'eva', 'beit', 'vision_transformer_sam'),
    'vision_transformer_relpos',
)
_POSITIONS = re.compile(r'(pos_embed|pos_embedding|position_embeddings|positional_embedding|embed_positions)')
_TOKENS = ('register_tokens', 'storage_tokens', 'class_embedding', 'class_token', *PREFIX_TOKENS)


@dataclass
class Inspection:
    """What a checkpoint holds.

    Attributes:
        naming: Whose names it has; see :mod:`mmhpvit.namings`.
        prefix: What stands before the names of the image encoder in it.
        width, depth, patch: Channels, blocks, side of a patch in pixels.
        positions: Number of positions that its absolute embedding has, those of prefix tokens included; None
            where it has no such embedding.
        tokens: Names and numbers of its prefix tokens.
        heads: Numbers of heads of the ViTs that it fits.
        fits: timm names of the ViTs that it fits, those of its own image size first.
        report: What becomes of its weights in an :class:`~mmhpvit.HPViT` of the ViT that was asked for, or of
            the first that it fits; None where it fits none.
    """

    naming: str
    prefix: str
    width: int
    depth: int
    patch: int
    positions: int | None
    tokens: dict[str, int]
    heads: list[int] = field(default_factory=list)
    fits: list[str] = field(default_factory=list)
    report: LoadReport | None = None

    def __str__(self) -> str:
        """A table of what was found, without the report."""
        tokens = ', '.join(f'{name} ({n})' for name, n in self.tokens.items()) or 'none'
        count = self.positions and self.positions - sum(self.tokens.values())
        square = next((c for c in (count, self.positions) if c and int(c**0.5) ** 2 == c), None)
        grid = f' ({int(square**0.5)} x {int(square**0.5)})' if square else ''
        rows = {
            'names': f'{self.naming}, under {self.prefix}' if self.prefix else self.naming,
            'width': self.width,
            'depth': self.depth,
            'heads': ' or '.join(map(str, self.heads)) or 'not in the weights',
            'patch': self.patch,
            'positions': f'{self.positions}{grid}' if self.positions else 'no absolute embedding',
            'prefix': tokens,
            'fits': ', '.join(self.fits) or 'no plain ViT of timm',
        }
        return '\n'.join(f'  {name:<10} {value}' for name, value in rows.items())


def inspect_checkpoint(
    checkpoint: str | os.PathLike,
    plain: str | None = None,
    source: str | None = None,
    progress=lambda names: names,
) -> Inspection:
    """Find out what a checkpoint holds and what would become of its weights.

    Args:
        checkpoint: File or URL, as for :func:`~mmhpvit.load_plain_weights`; not ``.npz``, whose names are
            known to timm's own reader only.
        plain: timm name of the ViT to load it into. None looks for all that it fits, which takes seconds to
            a minute.
        source: Whose names the file has, or the prefix of the encoder that is meant.
        progress: Wraps the list of names that are tried, as tqdm does.

    Raises:
        FileNotFoundError, OSError, ValueError: As :func:`~mmhpvit.load_plain_weights`.
    """
    checkpoint = os.fspath(checkpoint)
    if checkpoint.endswith('.npz'):
        raise ValueError(
            f'checkpoint {checkpoint!r} is in a format that only the ViT itself can read: convert it first '
            'with tools/convert_checkpoint.py FILE OUT.safetensors --plain NAME'
        )
    raw = read_checkpoint(checkpoint)
    found = _describe(raw, source, checkpoint)
    if plain is None:
        found.fits = fitting_names(raw, found, source, progress)
    else:
        found.fits = [plain]
    if found.fits:
        backbone = HPViT(found.fits[0])
        found.report = load_plain_weights(backbone, checkpoint, source)
        found.heads = sorted({_heads(build_plain_vit(name, device='meta')) for name in found.fits})
    return found


def _heads(vit: nn.Module) -> int:
    return vit.blocks[0].attn.num_heads


def _describe(raw: dict[str, Tensor], source: str | None, location: str) -> Inspection:
    naming, prefix = find_encoder(raw, source, location)
    own = {k.removeprefix(prefix): v for k, v in raw.items() if k.startswith(prefix)}
    kernel = own[naming.patch]
    named = to_timm_names(own, naming)
    blocks = (re.search(r'(?:blocks|resblocks|layers)\.(\d+)\.', name) for name in named)
    positions = [
        v for k, v in own.items() if _POSITIONS.search(k) and 'decoder' not in k and 'rel_pos' not in k
    ]
    tokens = {k.split('.')[-1]: v.numel() // kernel.shape[0] for k, v in own.items() if k.endswith(_TOKENS)}
    return Inspection(
        naming=naming.name,
        prefix=prefix,
        width=kernel.shape[0],
        depth=max((int(block[1]) for block in blocks if block), default=-1) + 1,
        patch=kernel.shape[-1] if kernel.dim() == 4 else int((kernel.shape[1] // 3) ** 0.5),
        positions=positions[0].numel() // kernel.shape[0] if positions else None,
        tokens=tokens,
    )


def fitting_names(
    raw: dict[str, Tensor], found: Inspection, source: str | None = None, progress=lambda names: names
) -> list[str]:
    """timm names of the plain ViTs that the weights of a file fit, those of its own image size first.

    Args:
        raw: Names and tensors of the file.
        found: What :func:`inspect_checkpoint` tells of it.
        source: Whose names the file has, or the prefix of the encoder that is meant.
        progress: Wraps the list of names that are tried, as tqdm does.
    """
    fits = {}
    for name in progress(_candidates(found.width, found.patch)):
        vit = build_plain_vit(name, device='meta')
        report = LoadReport('file', name)
        try:
            weights, shapes = convert(raw, vit, source, report)
        except ValueError:
            continue
        fits[name] = any(
            len(shapes.get(k, ())) == v.dim() and shapes[k] != v.shape for k, v in weights.items()
        )
    return sorted(fits, key=lambda name: (fits[name], len(name), name))


def _candidates(width: int, patch: int) -> Iterable[str]:
    """Plain ViTs of that width and patch size, told by one block of each."""
    names = [name for file in PLAIN_FILES for name in timm.list_models(module=file)]
    chosen = []
    for name in names:
        # Some have a setting for each of their blocks, and cannot be built with one.
        one = {} if is_model_in_modules(name, ['eva']) and 'sapiens2' in name else dict(depth=1)
        with torch.device('meta'):
            vit = timm.create_model(name, num_classes=0, **one)
        if vit.embed_dim == width and vit.patch_embed.patch_size == (patch, patch):
            chosen.append(name)
    return chosen
