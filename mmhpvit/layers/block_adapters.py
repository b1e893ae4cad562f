# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Where tokens lie, and how the blocks of each kind of plain ViT are told.

Positions are measured in patches of the plain ViT: neighbours of its own map are 1 apart and the centre of
its first patch is at (0, 0). A token of the 1/4 map of a patch-16 model thus lies between the points of the
pre-training grid, at (i + 0.5) / 4 - 0.5.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from timm.layers import RelPosBias, RelPosMlp, RotaryEmbeddingMixed
from timm.models import beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from .partition import Layout, partition, sequence_shapes
from .rel_pos_bias import module_bias, table_bias
from .rope import rotary_embedding

# Runs a block on some of the sequences of one group, (images * n, P + L, C): (block, its index, tokens, images,
# which n of the group's sequences).
BlockCall = Callable[[nn.Module, int, Tensor, int, slice], Tensor]


@dataclass(frozen=True)
class Geometry:
    """A token map and the sequences that a layout cuts it into.

    Attributes:
        size: Height and width of the map in tokens.
        pitch: Distance between neighbouring tokens of the map, in patches.
        layout: How each axis of the map is cut.
        prefix: Number of prefix tokens at the head of every sequence.
    """

    size: tuple[int, int]
    pitch: float
    layout: Layout
    prefix: int

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width of the map in patches."""
        return self.size[0] * self.pitch, self.size[1] * self.pitch

    @property
    def spacing(self) -> float:
        """Distance between neighbouring tokens of a sequence, in patches."""
        return self.pitch * self.layout.dilation

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of the sequences of each group."""
        return sequence_shapes(self.size, self.layout)

    def coordinates(self, device: torch.device) -> list[Tensor]:
        """Place (y, x) of every token, (n, L, 2) in float32, for each group of n sequences of L tokens."""
        axes = [
            (torch.arange(s, device=device, dtype=torch.float32) + 0.5) * self.pitch - 0.5 for s in self.size
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)[None]
        return [group[0] for group in partition(places, self.layout)]


class AbsolutePositions:
    """Blocks that know of positions only what was added to the tokens before them: the first ViT's.

    Args:
        blocks: The blocks of the plain ViT; made ready for :meth:`calls`.
        prefix: Number of prefix tokens that attend along.

    Attributes:
        compiles: Whether ``torch.compile`` makes one graph of a block for all sizes.
    """

    compiles = True

    def __init__(self, blocks: Sequence[nn.Module], prefix: int) -> None:
        pass

    def why_not(self, geometry: Geometry) -> str | None:
        """Why the blocks cannot run on such sequences; None where they can."""
        return None

    def calls(self, geometry: Geometry, common: nn.Module | None, device: torch.device) -> list[BlockCall]:
        """How to run a block on each group of sequences.

        Args:
            geometry: The token map and its sequences.
            common: What the blocks of the plain ViT share: its rotary embedding, its relative positions.
            device: Where the tokens are.
        """
        return [self._call(geometry, shape, common) for shape in geometry.shapes]

    def _call(self, geometry: Geometry, shape: tuple[int, int], common: nn.Module | None) -> BlockCall:
        """How to run a block on sequences of these rows and columns."""

        def call(block: nn.Module, index: int, x: Tensor, images: int, part: slice) -> Tensor:
            return block(x)

        return call


class RotaryPositions(AbsolutePositions):
    """Blocks that turn queries and keys by the place of their token: EVA-02, PE, DINOv3, RoPE-ViT."""

    def __init__(self, blocks: Sequence[nn.Module], prefix: int) -> None:
        for block in blocks:
            block.attn.num_prefix_tokens = prefix

    def calls(self, geometry: Geometry, common: nn.Module | None, device: torch.device) -> list[BlockCall]:
        if common is None:
            return super().calls(geometry, common, device)
        return [self._turned(common, c, geometry.extent) for c in geometry.coordinates(device)]

    @staticmethod
    def _turned(rope: nn.Module, coordinates: Tensor, extent: tuple[float, float]) -> BlockCall:
        by_block = isinstance(rope, RotaryEmbeddingMixed)
        of_all = None if by_block else rotary_embedding(rope, coordinates, extent)

        def call(block: nn.Module, index: int, x: Tensor, images: int, part: slice) -> Tensor:
            embed = rotary_embedding(rope, coordinates[part], extent, index) if by_block else of_all[part]
            return block(x, rope=embed.repeat(images, 1, 1, 1) if len(embed) > 1 else embed)

        return call


class TablePositions(AbsolutePositions):
    """Blocks with a table of biases over relative positions each: BEiT, BEiT v2."""

    def __init__(self, blocks: Sequence[nn.Module], prefix: int) -> None:
        for block in blocks:
            if block.attn.relative_position_bias_table is not None:
                block.attn.__class__ = _GivenBiasAttention

    def _call(self, geometry: Geometry, shape: tuple[int, int], common: nn.Module | None) -> BlockCall:
        def call(block: nn.Module, index: int, x: Tensor, images: int, part: slice) -> Tensor:
            table, window = block.attn.relative_position_bias_table, block.attn.window_size
            bias = table_bias(table, window, shape, geometry.spacing, geometry.extent, geometry.prefix)
            return block(x, shared_rel_pos_bias=bias[None])

        return call


class _GivenBiasAttention(beit.Attention):
    """BEiT's attention without the bias of its pre-training grid; it adds the one that it is given."""

    def _get_rel_pos_bias(self) -> float:
        return 0.0


class ModulePositions(AbsolutePositions):
    """Blocks with, or sharing, a module of relative positions: timm's ``vit_relpos`` and ``vit_srelpos``."""

    def __init__(self, blocks: Sequence[nn.Module], prefix: int) -> None:
        for block in blocks:
            own = block.attn.rel_pos
            if own is not None:
                own.__class__ = _GivenMlp if isinstance(own, RelPosMlp) else _GivenTable

    def _call(self, geometry: Geometry, shape: tuple[int, int], common: nn.Module | None) -> BlockCall:
        def bias_of(module: nn.Module) -> Tensor:
            return module_bias(module, shape, geometry.spacing, geometry.extent, geometry.prefix)[None]

        # Once for all blocks, as in timm: in training it draws what it drops.
        of_all = None if common is None else bias_of(common)

        def call(block: nn.Module, index: int, x: Tensor, images: int, part: slice) -> Tensor:
            own = block.attn.rel_pos
            if own is None:
                return block(x, shared_rel_pos=of_all)
            _of_thread.bias = bias_of(own)
            try:
                return block(x)
            finally:
                # Also where recomputation stops early, which it does by an exception.
                _of_thread.bias = None

        return call


# Several threads may run one model at a time.
_of_thread = threading.local()


class _Given:
    """A relative position module whose bias is that of the sequence at hand, not of the pre-training grid."""

    def get_bias(self) -> Tensor:
        return _of_thread.bias


class _GivenMlp(_Given, RelPosMlp):
    pass


class _GivenTable(_Given, RelPosBias):
    pass


class WindowPositions(AbsolutePositions):
    """Blocks that cut windows out of a map themselves, with relative positions on each axis: SAM's ViT.

    A sequence goes to them as the map that it is. Their windows keep their size in pixels at coarser strides.
    """

    # torch 2.14 does not come to an end with their windows of a map of any size.
    compiles = False

    def __init__(self, blocks: Sequence[nn.Module], prefix: int) -> None:
        self.windows = [block.window_size for block in blocks]

    def why_not(self, geometry: Geometry) -> str | None:
        if geometry.layout.window is not None or geometry.spacing < 1:
            return 'they cut their own windows, of whole patches'
        return None

    def _call(self, geometry: Geometry, shape: tuple[int, int], common: nn.Module | None) -> BlockCall:
        def call(block: nn.Module, index: int, x: Tensor, images: int, part: slice) -> Tensor:
            block.window_size = math.ceil(self.windows[index] / geometry.spacing)
            return block(x.unflatten(1, shape)).flatten(1, 2)

        return call


def positions_of(vit: nn.Module) -> type[AbsolutePositions] | None:
    """The kind of positions that the blocks of a ViT of timm need; None for what is no plain ViT."""
    return next((kind for cls, kind in _KINDS.items() if isinstance(vit, cls)), None)


_KINDS = {
    VisionTransformer: AbsolutePositions,
    Eva: RotaryPositions,
    beit.Beit: TablePositions,
    VisionTransformerRelPos: ModulePositions,
    VisionTransformerSAM: WindowPositions,
}
