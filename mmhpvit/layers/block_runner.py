# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Running blocks on the attention sequences of a token map: how many at a time, and which are computed again."""

import torch
from torch import Tensor, cat, nn
from torch.utils.checkpoint import checkpoint

from .block_adapters import BlockAdapter, Geometry, Sequences
from .drop_path import draw_kept
from .partition import partition, restore
from .pos_embed import is_compiling

# On two cores, ViT-Ti and -B at 512x512 predict in a seventh less time so than with all sequences at once; 1000 to
# 8000 were tried.
_CACHED_TOKENS = 2100
# Enough to keep a GPU busy with one layer.
_RECOMPUTED_TOKENS = 16384


def run_blocks(
    blocks: dict[int, nn.Module],
    adapter: BlockAdapter,
    geometry: Geometry,
    shared: nn.Module | None,
    tokens: Tensor,
    prefix: Tensor | None,
    recompute: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run blocks one after another on each of the sequences that a token map is cut into.

    Args:
        blocks: The blocks by their index in the plain ViT, in order.
        adapter: What the blocks must be told.
        geometry: Where the tokens lie, and how the map is cut.
        shared: The position module that all blocks share; None for none.
        tokens: Token map, (B, H, W, C).
        prefix: Prefix tokens, (B, P, C), which attend along in every sequence; None for none.
        recompute: Whether to recompute the blocks in the backward pass instead of keeping activations.

    Returns:
        The token map, and the prefix tokens averaged over the sequences, in the shapes that came in.
    """
    # Drawn once, so that all sequences of an image agree.
    kept = {index: draw_kept(block, tokens.shape[0], tokens) for index, block in blocks.items()}
    inputs = adapter.stage_inputs(geometry, shared, tokens.device)
    groups, prefixes = [], []
    for group, shape, given in zip(partition(tokens, geometry.layout), geometry.shapes, inputs, strict=True):
        b, n, _, c = group.shape
        p = 0
        if prefix is not None:
            p = prefix.shape[1]
            group = cat([prefix[:, None].expand(b, n, p, c), group], dim=2)
        sequences = Sequences(geometry, shape, b, shared, given)
        x = _run_group(blocks, adapter, sequences, group, kept, recompute)
        prefixes.append(x[:, :, :p])
        groups.append(x[:, :, p:])
    tokens = restore(groups, geometry.layout, tuple(tokens.shape[1:3]))
    if prefix is not None:
        prefix = (prefixes[0] if len(prefixes) == 1 else cat(prefixes, dim=1)).mean(dim=1)
    return tokens, prefix


def _run_group(
    blocks: dict[int, nn.Module],
    adapter: BlockAdapter,
    sequences: Sequences,
    group: Tensor,
    kept: dict[int, list[Tensor] | None],
    recompute: bool,
) -> Tensor:
    """Run blocks on sequences of one shape, (B, n, P + L, C), which know nothing of each other."""
    parts = []
    for some in _parts(group, recompute):
        part = group[:, some]
        x = part.flatten(0, 1)
        for index, block in blocks.items():
            args = block, index, adapter, sequences.part(some), x, kept[index]
            x = checkpoint(_run_block, *args, use_reentrant=False) if recompute else _run_block(*args)
        parts.append(x.unflatten(0, part.shape[:2]))
    return parts[0] if len(parts) == 1 else cat(parts, dim=1)


def _run_block(
    block: nn.Module,
    index: int,
    adapter: BlockAdapter,
    sequences: Sequences,
    x: Tensor,
    kept: list[Tensor] | None,
) -> Tensor:
    """Run a block on sequences (B * n, P + L, C)."""
    if _recomputed_by_others(block) and torch.is_grad_enabled() and not x.requires_grad:
        # Reentrant checkpointing, as mmengine's is, finds parameters only behind an input that needs a gradient.
        x = x.detach().requires_grad_()
    draws = () if kept is None else (kept,)
    return block(x, *draws, *adapter.block_args(block, index, sequences))


def _recomputed_by_others(block: nn.Module) -> bool:
    """Whether mmengine's or torch's activation checkpointing wraps a block, and it has parameters to train."""
    wrapped = 'forward' in vars(block) or hasattr(block, '_checkpoint_wrapped_module')
    return wrapped and any(param.requires_grad for param in block.parameters())


def _parts(group: Tensor, recompute: bool) -> list[slice]:
    """Which sequences of each image go through the blocks together.

    Few stay in the cache of a CPU, and take little memory to predict or to recompute. A GPU is kept busy by many; and
    a compiled or traced graph must serve all sizes, so nothing is computed from them.
    """
    traced = is_compiling() or torch.jit.is_tracing()
    if traced or (group.device.type != 'cpu' and not recompute):
        return [slice(None)]
    b, n, length, _ = group.shape
    tokens = _CACHED_TOKENS if group.device.type == 'cpu' else _RECOMPUTED_TOKENS
    step = max(1, tokens // max(b * length, 1))
    return [slice(start, start + step) for start in range(0, n, step)]
