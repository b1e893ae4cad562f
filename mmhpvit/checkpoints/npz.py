# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Read the .npz files of Google's repositories (AugReg, SigLIP) with timm's own reader, and check the result."""

import math
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .reader import refuse_zip_bomb
from .validate import KERNEL, POSITIONS, Target, is_of_another_patch

# What numpy, zipfile and timm raise for a damaged or foreign file.
_DAMAGE = (
    *(ValueError, KeyError, RuntimeError, OSError, AttributeError, MemoryError),
    zipfile.BadZipFile,
)
_BLOCK = re.compile(r'encoderblock_(\d+)/')


def read_npz(path: Path, plain: nn.Module, name: str) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Read the weights of a ViT.

    Args:
        path: The file.
        plain: timm's model, whose weights are overwritten.
        name: Its timm name.

    Returns:
        The weights with timm's names, resized to the model; the shapes of the position embedding and the patch
        kernel in the file.

    Raises:
        ValueError: The file is not such a file, is of another depth or patch, or lacks weights.
    """
    refuse_zip_bomb(path)
    try:
        shapes = _shapes(path)
        depth = max((int(m[1]) + 1 for n in shapes if (m := _BLOCK.search(n))), default=len(plain.blocks))
        if depth != len(plain.blocks):
            raise ValueError(f'depth {depth}, the model has {len(plain.blocks)}')
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.fill_(math.nan)
        plain.load_pretrained(str(path))
    except _DAMAGE as error:
        reason = str(error).split('\n')[0]
        raise ValueError(
            f'checkpoint {str(path)!r} is no .npz file of a ViT that fits plain={name!r} ({reason})'
        ) from error
    weights = Target(plain, name, str(path)).expected
    if lacking := [n for n, tensor in weights.items() if tensor.isnan().all()]:
        raise ValueError(
            f'checkpoint {str(path)!r} lacks {len(lacking)} weights of plain={name!r}: '
            f'{", ".join(lacking[:8])}'
        )
    given = {}
    for n, shape in shapes.items():
        if n.endswith(('pos_embedding', 'posembed_input/pos_embedding')):
            given[POSITIONS] = shape if len(shape) == 3 else (1, *shape)
        elif n.endswith('embedding/kernel') and len(shape) == 4:
            given[KERNEL] = (shape[3], shape[2], *shape[:2])
            if is_of_another_patch(shape[0], plain.patch_embed.patch_size[0], name):
                raise ValueError(
                    f'checkpoint {str(path)!r} has patch {shape[0]} (the model has {plain.patch_embed.patch_size[0]}): '
                    f'it is not of plain={name!r}; set plain= to the timm name of the ViT that it is of'
                )
    return weights, given


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in an archive, from their headers. Refuses one that declares more than it holds."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                form = np.lib.format
                first = form.read_magic(file) == (1, 0)
                read = form.read_array_header_1_0 if first else form.read_array_header_2_0
                shape, _, dtype = read(file)
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f'{member.filename} declares {shape} and holds {member.file_size} bytes')
            shapes[member.filename.removesuffix('.npy')] = shape
    return shapes
