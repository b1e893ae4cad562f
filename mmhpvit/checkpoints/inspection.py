# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Inspect a checkpoint: what it contains, and which of timm's plain ViTs it fits."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ..backbones.hpvit import HPViT
from ..backbones.timm_names import timm_name
from ..backbones.timm_vit import PREFIX_TOKENS, build_plain_vit
from .convert import convert
from .download import local_file
from .key_mapping import Encoder, find_encoder, to_timm_names
from .load import load_plain_weights
from .reader import read_checkpoint, read_meta
from .report import LoadReport
from .trained import trained_as
from .validate import Target, check_values, patch_side, refuse_trained

# The files of timm that hold the ViTs that can be used.
PLAIN_FILES = (
    *('vision_transformer', 'deit', 'eva', 'beit', 'vision_transformer_sam'),
    'vision_transformer_relpos',
)
_POSITIONS = re.compile(r'pos_embed|position_embedding|positional_embedding|embed_positions')
# What names in a file say of its family, and what timm's names of it then have in them.
_HINTS = (
    (r'head\.probe$|logit_bias$', 'siglip'),
    (r'class_embedding$|pre_layrnorm|\bln_pre\.|logit_scale$', '_clip_'),
    (r'storage_tokens$', 'dinov3'),
    (r'layer_scale1\.lambda1$|\bls1\.gamma$', 'dinov'),
)
_TOKENS = ('register_tokens', 'storage_tokens', 'class_embedding', 'class_token', *PREFIX_TOKENS)


@dataclass
class Inspection:
    """What a checkpoint holds.

    Attributes:
        naming: Naming of its weights; see :mod:`mmhpvit.checkpoints.key_mapping`.
        prefix: Prefix of the image encoder's names in it.
        width, depth, patch: Width C, blocks, side of a patch in pixels.
        in_channels: Channels of its images.
        positions: Number of entries of its absolute position embedding, prefix tokens included; None without one.
        tokens: Names and numbers of its prefix tokens.
        trained: Backbone, iteration and classes, where a training of mmengine wrote it.
        fits: timm names of the ViTs that it fits; first those that its names suggest and that have its image size.
        traits: What the weights of each do not show: heads, activation, rotary positions, epsilon.
        misfit: If it fits none, why not the nearest.
        report: Report of loading it into an :class:`~mmhpvit.HPViT` of the requested ViT, or of the first that
            it fits; None if it fits none.
    """

    naming: str
    prefix: str
    width: int
    depth: int
    patch: int
    in_channels: int
    positions: int | None
    tokens: dict[str, int]
    trained: str | None = None
    fits: list[str] = field(default_factory=list)
    traits: dict[str, str] = field(default_factory=dict)
    misfit: str | None = None
    report: LoadReport | None = None

    def __str__(self) -> str:
        """A table of what was found, without the report."""
        tokens = ', '.join(f'{name} ({n})' for name, n in self.tokens.items()) or 'none'
        count = self.positions and self.positions - sum(self.tokens.values())
        square = next((c for c in (count, self.positions) if c and int(c**0.5) ** 2 == c), None)
        grid = f' ({int(square**0.5)} x {int(square**0.5)})' if square else ''
        rows = {
            'names': f'{self.naming}, under {self.prefix}' if self.prefix else self.naming,
            'trained': self.trained,
            'width': self.width,
            'depth': self.depth,
            'patch': self.patch,
            'channels': self.in_channels,
            'positions': f'{self.positions}{grid}' if self.positions else 'no absolute embedding',
            'prefix': tokens,
        }
        lines = [f'  {name:<10} {value}' for name, value in rows.items() if value is not None]
        kinds = {}
        for name in self.fits:
            kinds.setdefault(self.traits.get(name, ''), []).append(name)
        for traits, names in kinds.items():
            lines.append(f'  {"fits":<10} {", ".join(names)} ({traits})')
        if len(kinds) > 1:
            lines.append(
                '  These compute different things, which weights do not show: take the name of whose they are.'
            )
        if not self.fits:
            lines.append(
                f'  {"fits":<10} no plain ViT of timm; {self.misfit or "none has this width and patch"}'
            )
        return '\n'.join(lines)


def inspect_checkpoint(
    checkpoint: str | os.PathLike,
    plain: str | None = None,
    source: str | None = None,
    progress=lambda names: names,
) -> Inspection:
    """Find out what a checkpoint contains and what loading would do with its weights.

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
    if local_file(checkpoint).suffix == '.npz':
        raise ValueError(
            f'checkpoint {checkpoint!r} is in a format that only the ViT itself can read: convert it first '
            'with tools/convert_checkpoint.py FILE OUT.safetensors --plain NAME'
        )
    raw = read_checkpoint(checkpoint)
    encoder = find_encoder(raw, source, checkpoint)
    found = _describe(encoder, checkpoint)
    found.trained = trained_as(read_meta(checkpoint))
    if plain is None:
        try:
            refuse_trained(encoder.weights, checkpoint)
        except ValueError as error:  # none can fit
            found.misfit = str(error)
            return found
    if plain is not None:
        found.fits = [timm_name(plain)]
    else:
        found.fits, found.misfit = fitting_names(raw, encoder, found, progress)
        found.fits = _as_configured(found.fits, local_file(checkpoint).with_name('config.json'))
    found.traits = {name: _traits(build_plain_vit(name, device='meta')) for name in found.fits}
    if found.fits:
        found.report = load_plain_weights(
            HPViT(found.fits[0], in_channels=found.in_channels), checkpoint, source
        )
    return found


def _traits(vit: nn.Module) -> str:
    """What the weights of a ViT do not show: heads, activation, rotary positions, the epsilon of its norms."""
    modules = list(vit.blocks[0].modules())
    heads = next(module.num_heads for module in modules if hasattr(module, 'num_heads'))
    activation = next((m.act for m in modules if isinstance(getattr(m, 'act', None), nn.Module)), None)
    epsilon = next((m.eps for m in modules if hasattr(m, 'eps')), None)
    traits = [f'{heads} heads']
    traits += [type(activation).__name__] if activation is not None else []
    traits += ['rotary'] if getattr(vit, 'rope', None) is not None else []
    traits += [f'eps {epsilon:g}'] if epsilon else []
    return ', '.join(traits)


def _as_configured(names: list[str], path: Path) -> list[str]:
    """Put first what agrees with the configuration that Hugging Face's libraries lay beside the weights."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        return names
    config = config.get('vision_config', config) if isinstance(config, dict) else {}
    quick = config.get('hidden_act') == 'quick_gelu'
    return sorted(names, key=lambda name: ('quickgelu' in name) != quick)


def _describe(encoder: Encoder, location: str) -> Inspection:
    own, kernel = encoder.weights, encoder.kernel
    check_values({name: tensor for name, tensor in own.items() if tensor.dim() > 1}, location)
    named = to_timm_names(own, encoder.naming)
    blocks = (re.search(r'(?:blocks|resblocks|layers)\.(\d+)\.', name) for name in named)
    positions = [
        v for k, v in own.items() if _POSITIONS.search(k) and 'decoder' not in k and 'rel_pos' not in k
    ]
    tokens = {k.split('.')[-1]: v.numel() // kernel.shape[0] for k, v in own.items() if k.endswith(_TOKENS)}
    return Inspection(
        naming=encoder.naming.name,
        prefix=encoder.prefix,
        width=kernel.shape[0],
        depth=max((int(block[1]) for block in blocks if block), default=-1) + 1,
        patch=patch_side(kernel.shape),
        in_channels=kernel.shape[1] if kernel.dim() == 4 else 3,
        positions=positions[0].numel() // kernel.shape[0] if positions else None,
        tokens=tokens,
    )


def fitting_names(
    raw: dict[str, Tensor], encoder: Encoder, found: Inspection, progress=lambda names: names
) -> tuple[list[str], str | None]:
    """timm names of the plain ViTs that the weights of a file fit.

    Args:
        raw: Names and tensors of the file.
        encoder: The image encoder in it.
        found: What :func:`inspect_checkpoint` tells of it.
        progress: Wraps the list of names that are tried, as tqdm does.

    Returns:
        The names, those first that the file's own names point to, then those of its own image size; and,
        where there are none, what is wrong with the nearest.
    """
    hints = [part for pattern, part in _HINTS if any(re.search(pattern, name) for name in raw)]
    ranks, misfits = {}, {}
    for name in progress(_candidates(found.width, found.patch)):
        vit = build_plain_vit(name, device='meta', in_channels=found.in_channels)
        try:
            converted = convert(encoder, Target(vit, name, 'file'))
        except ValueError as error:
            misfits[name] = len(vit.blocks) != found.depth, len(name), str(error)
            continue
        shapes = converted.shapes
        resized = any(
            len(shapes.get(k, ())) == v.dim() and shapes[k] != v.shape for k, v in converted.weights.items()
        )
        pointed = all(hint in name for hint in hints[:1])
        ranks[name] = not pointed, resized, len(name), name
    nearest = min(misfits.values(), default=(None,))[-1]
    return sorted(ranks, key=ranks.get), nearest


def _candidates(width: int, patch: int) -> list[str]:
    """Plain ViTs of that width and patch size, told by one block of each."""
    names = [name for file in PLAIN_FILES for name in timm.list_models(module=file)]
    vits = {name: build_one_block(name) for name in names}
    return [
        n for n, vit in vits.items() if (vit.embed_dim, *vit.patch_embed.patch_size) == (width, patch, patch)
    ]


def build_one_block(name: str) -> nn.Module:
    """timm's model of a plain ViT with its first block alone, on the meta device: its shapes in no time."""
    with torch.device('meta'):
        try:
            return timm.create_model(name, num_classes=0, depth=1)
        except AssertionError:  # it has a setting for each of its blocks, and must be built with all
            return timm.create_model(name, num_classes=0)
