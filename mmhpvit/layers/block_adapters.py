# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What the blocks of each family of plain ViTs must be told about positions. No other file changes timm's modules.

Positions are measured in patches of the plain ViT: neighbours on its own map are 1 apart, and the centre of its first
patch is at (0, 0). A token of the 1/4 map of a patch-16 model lies between the points of the pre-training grid, at
(i + 0.5) / 4 - 0.5.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import torch
from timm.layers import DropPath, RotaryEmbeddingMixed
from timm.models import beit, vision_transformer_relpos, vision_transformer_sam
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .drop_path import ImageDropPath, ImageDropPathBlock
from .partition import Layout, partition, sequence_shapes
from .rel_pos_bias import module_bias, table_bias
from .rope import rotary_embedding


@dataclass(frozen=True)
class Geometry:
    """A token map and how it is cut into attention sequences.

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

    def coordinates(self, device: torch.device | str) -> list[Tensor]:
        """Position (y, x) of every token, (n, L, 2) in float32, for each group of n sequences of L tokens."""
        axes = [
            (torch.arange(s, device=device, dtype=torch.float32) + 0.5) * self.pitch - 0.5 for s in self.size
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)[None]
        return [group[0] for group in partition(places, self.layout)]


@dataclass(frozen=True)
class Sequences:
    """Attention sequences of one shape that go through the blocks together, some of each image.

    Attributes:
        geometry: The token map that they are cut from.
        shape: Rows and columns of a sequence.
        images: Number of images; the sequences of one follow each other.
        shared: The position module that all blocks share, such as a rotary embedding; None for none.
        given: What an adapter computed once for all blocks of the stage, (n, ...) for n sequences of an image or
            (1, ...) for all alike; None for nothing.
    """

    geometry: Geometry
    shape: tuple[int, int]
    images: int
    shared: nn.Module | None
    given: Tensor | None

    def part(self, some: slice) -> 'Sequences':
        """Some of the sequences of each image."""
        given = self.given
        return self if given is None or len(given) == 1 else replace(self, given=given[some])


class BlockAdapter:
    """Blocks that need no position input: the original ViT's.

    An adapter has no state. Whatever a block must know is an argument of its call, so that anybody may recompute or
    compile blocks, and predict in several threads. Arguments are positional, since mmengine's activation checkpointing
    passes no others on.

    Attributes:
        positions: Kind of position embedding.
        compiles: Whether ``torch.compile`` makes one graph of a block for all sizes.
    """

    positions = 'absolute'
    compiles = True

    def prepare(self, blocks: Iterable[nn.Module], prefix: int) -> None:
        """Make timm's blocks ready for sequences of any shape, behind ``prefix`` prefix tokens."""
        for block in blocks:
            self._prepare(block, prefix)
            _drop_whole_images(block)

    def _prepare(self, block: nn.Module, prefix: int) -> None:
        pass

    def why_not(self, geometry: Geometry) -> str | None:
        """Why blocks cannot run on such sequences; None where they can."""
        return None

    def stage_inputs(
        self, geometry: Geometry, shared: nn.Module | None, device: torch.device
    ) -> list[Tensor | None]:
        """What all blocks of a stage need, computed once: ``Sequences.given`` of each group."""
        return [None] * len(geometry.shapes)

    def block_args(self, block: nn.Module, index: int, sequences: Sequences) -> tuple:
        """Arguments behind the tokens for block number ``index`` of the plain ViT on these sequences."""
        return ()


class RotaryAdapter(BlockAdapter):
    """Blocks that rotate queries and keys by the position of their token: EVA-02, PE, DINOv3, RoPE-ViT."""

    positions = 'rotary'

    def _prepare(self, block: nn.Module, prefix: int) -> None:
        block.attn.num_prefix_tokens = prefix

    def stage_inputs(
        self, geometry: Geometry, shared: nn.Module | None, device: torch.device
    ) -> list[Tensor | None]:
        if shared is None:
            return super().stage_inputs(geometry, shared, device)
        coordinates = geometry.coordinates(device)
        if isinstance(shared, RotaryEmbeddingMixed):
            return coordinates  # it differs from block to block
        return [rotary_embedding(shared, group, geometry.extent) for group in coordinates]

    def block_args(self, block: nn.Module, index: int, sequences: Sequences) -> tuple:
        rope = sequences.given
        if rope is None:
            return ()
        if isinstance(sequences.shared, RotaryEmbeddingMixed):
            rope = rotary_embedding(sequences.shared, rope, sequences.geometry.extent, index)
        return (rope.repeat(sequences.images, 1, 1, 1) if len(rope) > 1 else rope,)


class TableAdapter(BlockAdapter):
    """Blocks with a table of biases over relative positions each: BEiT, BEiT v2."""

    positions = 'relative'

    def _prepare(self, block: nn.Module, prefix: int) -> None:
        if block.attn.relative_position_bias_table is not None:
            block.attn.__class__ = _GivenBiasAttention

    def block_args(self, block: nn.Module, index: int, sequences: Sequences) -> tuple:
        table, window = block.attn.relative_position_bias_table, block.attn.window_size
        geometry = sequences.geometry
        bias = table_bias(table, window, sequences.shape, geometry.spacing, geometry.extent, geometry.prefix)
        return (bias[None],)


class _GivenBiasAttention(beit.Attention):
    """BEiT's attention with the bias that it is given in place of that of its pre-training grid."""

    def _get_rel_pos_bias(self) -> float:
        return 0.0


class ModuleAdapter(BlockAdapter):
    """Blocks with, or sharing, a module of relative positions: timm's ``vit_relpos`` and ``vit_srelpos``."""

    positions = 'relative'

    def _prepare(self, block: nn.Module, prefix: int) -> None:
        if block.attn.rel_pos is not None:
            block.attn.__class__ = _GivenRelPosAttention

    def stage_inputs(
        self, geometry: Geometry, shared: nn.Module | None, device: torch.device
    ) -> list[Tensor | None]:
        if shared is None:
            return super().stage_inputs(geometry, shared, device)
        # Once for all blocks, as in timm: in training it draws what it drops.
        return [_bias_of(shared, geometry, shape) for shape in geometry.shapes]

    def block_args(self, block: nn.Module, index: int, sequences: Sequences) -> tuple:
        own = dict(block.attn.named_children()).get('rel_pos')
        given = sequences.given if own is None else _bias_of(own, sequences.geometry, sequences.shape)
        return (given,)


def _bias_of(rel_pos: nn.Module, geometry: Geometry, shape: tuple[int, int]) -> Tensor:
    return module_bias(rel_pos, shape, geometry.spacing, geometry.extent, geometry.prefix)[None]


class _GivenRelPosAttention(vision_transformer_relpos.RelPosAttention):
    """timm's attention with the bias that it is given in place of that of its own module."""

    # Found before the submodule of that name, whose parameters stay where they are.
    rel_pos = None


class WindowAdapter(BlockAdapter):
    """Blocks that cut windows out of a map themselves, with relative positions on each axis: SAM's ViT.

    Their windows keep their size in pixels at coarser strides.
    """

    positions = 'relative, windows'
    # torch 2.14 does not come to an end with their windows of a map of any size.
    compiles = False

    def _prepare(self, block: nn.Module, prefix: int) -> None:
        block.__class__ = _SequenceBlock

    def why_not(self, geometry: Geometry) -> str | None:
        if geometry.layout.window is not None or geometry.spacing < 1:
            return 'they cut their own windows, of whole patches'
        return None

    def block_args(self, block: nn.Module, index: int, sequences: Sequences) -> tuple:
        window = math.ceil(block.window_size / sequences.geometry.spacing)
        return sequences.shape, window


class _SequenceBlock(vision_transformer_sam.Block):
    """SAM's block on sequences (N, rows * columns, C), with the side of its windows as an argument (0: none)."""

    def forward(self, x: Tensor, shape: tuple[int, int], window: int) -> Tensor:
        branch = self.norm1(x.unflatten(1, shape))
        if window:
            windows, padded = vision_transformer_sam.window_partition(branch, window)
            branch = vision_transformer_sam.window_unpartition(self.attn(windows), window, shape, padded)
        else:
            branch = self.attn(branch)
        x = x + self.drop_path1(self.ls1(branch)).flatten(1, 2)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def _drop_whole_images(block: nn.Module) -> None:
    """Let the stochastic depth of a block draw once per image, from draws that its call is given."""
    found = [
        (m, name) for m in block.modules() for name, child in m.named_children() if type(child) is DropPath
    ]
    for module, name in found:
        setattr(module, name, ImageDropPath(getattr(module, name).drop_prob))
    if found:
        block.__class__ = _with_draws(type(block))


@cache
def _with_draws(block_class: type[nn.Module]) -> type[nn.Module]:
    """A block class whose call takes the draws of stochastic depth."""

    def reduce_ex(self, protocol) -> tuple:
        # By the class that a module has under its name; the state is nn.Module's, without compiled code.
        return _new_with_draws, (block_class,), *object.__reduce_ex__(self, 2)[2:]

    return type(block_class.__name__, (ImageDropPathBlock, block_class), dict(__reduce_ex__=reduce_ex))


def _new_with_draws(block_class: type[nn.Module]) -> nn.Module:
    return _with_draws(block_class).__new__(_with_draws(block_class))


def adapter_of(vit: nn.Module) -> BlockAdapter | None:
    """The adapter for the blocks of a timm ViT; None for a model that is no plain ViT."""
    return next((adapter() for cls, adapter in _ADAPTERS.items() if isinstance(vit, cls)), None)


_ADAPTERS = {
    VisionTransformer: BlockAdapter,
    Eva: RotaryAdapter,
    beit.Beit: TableAdapter,
    vision_transformer_relpos.VisionTransformerRelPos: ModuleAdapter,
    vision_transformer_sam.VisionTransformerSAM: WindowAdapter,
}
