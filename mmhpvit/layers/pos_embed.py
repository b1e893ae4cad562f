# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The absolute position embedding at the tokens of a map of any size."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

# From torch 2.3 on; before that blocks are not compiled.
is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)


def interpolate_positions(
    embedding: Tensor, prefix: int, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Bring a position embedding to another size, as timm does (bicubic, antialiased, computed in float32).

    Args:
        embedding: (1, P + gh * gw, C), or as a map (1, gh, gw, C) without prefix.
        prefix: Number P of entries for prefix tokens at its head.
        grid: gh and gw.
        size: H and W of the token map.

    Returns:
        (1, H, W, C) in the type of ``embedding``, without the entries for prefix tokens.
    """
    places = embedding[:, prefix:].reshape(1, -1, embedding.shape[-1])
    if is_compiling():  # which keeps sizes open, so that they are not compared
        by_axis = embedding.requires_grad and torch.is_grad_enabled()
    else:
        by_axis = torch.are_deterministic_algorithms_enabled() and grid != size
    if by_axis:
        return _interpolate_by_axis(places.unflatten(1, grid), size)
    return resample_abs_pos_embed(places, size, old_size=grid, num_prefix_tokens=0).reshape(1, *size, -1)


def _interpolate_by_axis(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """The same by a matrix for each axis: torch's own gradient has no deterministic form on GPUs, and none for a
    compiler that keeps the sizes open.

    Args:
        positions: (1, gh, gw, C).
        size: H and W.

    Returns:
        (1, H, W, C) in the type of ``positions``, computed in float32.
    """
    rows, columns = (
        F.interpolate(
            torch.eye(old, device=positions.device)[None, None],
            size=(new, old),
            mode='bicubic',
            antialias=True,
        )[0, 0]
        for old, new in zip(positions.shape[1:3], size, strict=True)
    )
    with torch.autocast('cpu' if positions.is_meta else positions.device.type, enabled=False):
        wide = torch.einsum('hi,wj,bijc->bhwc', rows, columns, positions.float())
    return wide.to(positions.dtype)


@dataclass
class _Kept:
    source: nn.Parameter
    version: int
    values: Tensor
    positions: Tensor

    def is_of(self, source: nn.Parameter, size: tuple[int, int]) -> bool:
        now = self.positions
        alike = (now.dtype, now.device, tuple(now.shape[1:3])) == (source.dtype, source.device, size)
        if self.source is not source or not alike:
            return False
        return torch.equal(self.values, source) if source.is_cpu else self.version == source._version


class KeptPositions:
    """Interpolated positions of the last size under a key, for as long as what they came from stays as it is.

    On a CPU interpolating is 2 to 8 % of a prediction, and whether the embedding is the same is told by its values:
    averages of weights are written through ``.data``, which leaves no other trace. A GPU would have to be waited for to
    compare values; it interpolates anew each time, except an embedding that the config freezes.
    """

    def __init__(self) -> None:
        self._kept: dict[int | None, _Kept] = {}

    def get(
        self,
        key: int | None,
        embedding: Tensor,
        prefix: int,
        grid: tuple[int, int],
        tokens: Tensor,
        frozen: bool,
    ) -> Tensor:
        """:func:`interpolate_positions`, or what it has returned before.

        Args:
            key: Which of several maps of one image it is for.
            embedding, prefix, grid: As there.
            tokens: The map that they are for, (B, H, W, C).
            frozen: Whether the embedding is never trained.
        """
        learns = embedding.requires_grad and torch.is_grad_enabled()
        size = tuple(tokens.shape[1:3])
        # Compiling comes first: it knows nothing of inference mode.
        in_passing = is_compiling() or torch.jit.is_tracing()
        # Neither is known what becomes of, nor has it a version.
        in_passing = in_passing or torch.is_inference_mode_enabled() or embedding.is_inference()
        # Tensors that stand for others (of torch.func, of FSDP, of a count of operations) have other types.
        real = type(embedding) is nn.Parameter and type(tokens) is Tensor
        if in_passing or learns or not real or not (embedding.is_cpu or frozen):
            return interpolate_positions(embedding, prefix, grid, size)
        kept = self._kept.get(key)
        if kept is None or not kept.is_of(embedding, size):
            positions = interpolate_positions(embedding, prefix, grid, size)
            kept = _Kept(embedding, embedding._version, embedding.detach().clone(), positions)
            self._kept[key] = kept
        return kept.positions
