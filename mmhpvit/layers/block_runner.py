# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Running blocks on the attention sequences of a token map: how many at a time, and which are computed again."""

from collections.abc import Sequence

import torch
from mmengine.runner.activation_checkpointing import wrap_forward
from torch import Tensor, cat, nn
from torch.utils.checkpoint import checkpoint

from .block_adapters import BlockCall
from .drop_path import drop_paths, run_block
from .partition import Layout, partition, restore
from .pos_embed import is_compiling

# On two cores, ViT-Ti and -B at 512x512 predict in a seventh less time so than with all sequences at once; 1000 to
# 8000 were tried.
_CACHED_TOKENS = 2100
# Enough to keep a GPU busy with one layer.
_RECOMPUTED_TOKENS = 16384


def run_blocks(
    blocks: dict[int, nn.Module],
    layout: Layout,
    calls: Sequence[BlockCall],
    tokens: Tensor,
    prefix: Tensor | None,
    recompute: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run blocks one after another on each of the sequences that a layout cuts a map into.

    Args:
        blocks: The blocks by their index in the plain ViT, in order.
        layout: How the map is cut.
        calls: How to run a block on each group of sequences.
        tokens: Token map, (B, H, W, C).
        prefix: Prefix tokens, (B, P, C), which attend along in every sequence; None for none.
        recompute: Whether to compute the blocks again in the backward pass instead of keeping activations.

    Returns:
        The token map, and the prefix tokens averaged over the sequences, in the shapes that came in.

    Raises:
        ValueError: Blocks that are recomputed in the backward pass by others.
    """
    if torch.is_grad_enabled() and not is_compiling():
        _refuse_outer_checkpointing(blocks)
    kept = [[path.draw(tokens, tokens.shape[0]) for path in drop_paths(block)] for block in blocks.values()]
    groups, prefixes = [], []
    for group, call in zip(partition(tokens, layout), calls, strict=True):
        b, n, _, c = group.shape
        p = 0
        if prefix is not None:
            p = prefix.shape[1]
            group = cat([prefix[:, None].expand(b, n, p, c), group], dim=2)
        x = _run_sequences(blocks, call, group, kept, recompute)
        prefixes.append(x[:, :, :p])
        groups.append(x[:, :, p:])
    tokens = restore(groups, layout, tuple(tokens.shape[1:3]))
    if prefix is not None:
        prefix = (prefixes[0] if len(prefixes) == 1 else cat(prefixes, dim=1)).mean(dim=1)
    return tokens, prefix


# By this the ``forward`` is known that mmengine's ``activation_checkpointing`` gives a module.
_CODE_OF_MMENGINES_WRAPPER = wrap_forward(lambda: None).__code__


def _refuse_outer_checkpointing(blocks: dict[int, nn.Module]) -> None:
    """Refuse blocks that others run anew in the backward pass: what a call has set in them beforehand, which images
    skip and where tokens are, would be that of the last call."""
    for index, block in blocks.items():
        own_forward = getattr(vars(block).get('forward'), '__code__', None)
        if own_forward is _CODE_OF_MMENGINES_WRAPPER or hasattr(block, '_checkpoint_wrapped_module'):
            raise ValueError(
                f'blocks.{index} is wrapped for activation checkpointing; leave activation_checkpointing out and set '
                'with_cp=True in model.backbone, which does it for all blocks'
            )


def _run_sequences(
    blocks: dict[int, nn.Module], call: BlockCall, group: Tensor, kept: list[list], recompute: bool
) -> Tensor:
    """Run blocks on sequences (B, n, P + L, C), which know nothing of each other."""
    b, n, length, _ = group.shape
    step = max(1, _tokens_at_a_time(group.device.type, n * b * length, recompute) // max(b * length, 1))
    parts = []
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        x = group[:, part].flatten(0, 1)
        for (index, block), drawn in zip(blocks.items(), kept, strict=True):
            args = call, block, index, x, b, part, drawn
            x = checkpoint(run_block, *args, use_reentrant=False) if recompute else run_block(*args)
        parts.append(x.unflatten(0, (b, part.stop - part.start)))
    return parts[0] if len(parts) == 1 else cat(parts, dim=1)


def _tokens_at_a_time(device: str, everything: int, recompute: bool) -> int:
    """How many tokens of a group of sequences go through the blocks together.

    Few stay in the cache of a CPU, and take little memory to predict or to recompute. A GPU is kept busy by many; and
    a compiled or traced graph is to serve all sizes.
    """
    if is_compiling() or torch.jit.is_tracing():
        return everything
    if device == 'cpu':
        return _CACHED_TOKENS
    return _RECOMPUTED_TOKENS if recompute else everything
