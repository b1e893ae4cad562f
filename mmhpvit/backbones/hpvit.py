# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""HPViT: a plain ViT as a hierarchical backbone."""

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, cat, nn

from ..layers.block_adapters import Geometry, positions_of
from ..layers.block_runner import run_blocks
from ..layers.drop_path import drop_whole_images
from ..layers.partition import LAYOUTS
from ..layers.patch_embed import PATCH_KERNELS, PatchEmbedding, power_of_two_patch
from ..layers.pooling import POOLINGS, build_pooling
from ..layers.pos_embed import KeptPositions
from .options import (
    STRIDES,
    check_choice,
    check_depths,
    check_flag,
    check_frozen_stages,
    check_init_cfg,
    check_out_indices,
    check_positive,
    for_each_stage,
)
from .stages import Stage, plan_stages
from .timm_vit import PREFIX_TOKENS, SHARED_POSITIONS, build_plain_vit


@MODELS.register_module()
class HPViT(BaseModule):
    """A plain ViT turned into a backbone with features at 1/4, 1/8, 1/16 and 1/32 of the image.

    After "Rethinking Hierarchies in Pre-trained Plain Vision Transformer" (arXiv 2211.01785): the stride
    of the patch embedding goes down to 4, and 2x2 pooling goes in between blocks at three places. The
    split of the blocks, the attention layout, and what happens to the kernel, the position embedding and
    the prefix tokens are choices of this package.

    Parameters keep timm's names (``patch_embed.proj``, ``pos_embed``, ``cls_token``, ``blocks.N``), so
    the weights of the plain ViT fit; what is new is called ``pools.i`` and ``out_norms.i``.

    Args:
        plain: timm name of the plain ViT, such as ``'vit_base_patch16_224.mae'``.
        depths: How many of its blocks work at 1/4, 1/8, 1/16 and 1/32; they must sum to its number of
            blocks. With leading zeros the patch embedding starts at the stride of the first stage that has
            blocks, and finer levels are upsampled from that stage. Or a preset, which for 12, 24 and 32 blocks is
            ``'light'``: (0, 3, 9, 0), (0, 6, 18, 0), (0, 8, 24, 0), of ViT-B 1.6 times the operations of
            ``PlainViTPyramid`` at 512x512;
            ``'standard'`` (default): (2, 2, 6, 2), (4, 4, 12, 4), (5, 5, 17, 5), 3.6 times;
            ``'dense'``: (3, 3, 3, 3), (6, 6, 6, 6), (8, 8, 8, 8), 4.8 times.
        pooling: ``'conv'`` (default; a 2x2 convolution that starts as the average), ``'pick'`` (one that starts as a
            single token of the cell, with which a grid goes on as the plain ViT that it is) or ``'avg'``.
        attention: Layout of each stage, or one for all. ``'grid'`` (default): a token attends to the
            tokens that lie a multiple of the patch size away, as it was pre-trained; from the stride of
            the patch size on this is the same as ``'global'``. ``'window_grid'``: to those of them that are
            in its window, so that cost grows with the image and not with its square. ``'window'``: to all
            tokens of its window. ``'global'``: to all tokens.
        window_size: Most tokens along the side of a sequence of ``'window'`` or ``'window_grid'``, for each
            stage or one for all. Default: 14, which on a grid is 224 pixels of a patch-16 model.
        grid_spacing: Distance between neighbours of a ``'grid'`` or ``'window_grid'`` sequence in patches, for each
            stage or one for all. Default: 1, as in pre-training. 2 sees the image as a plain ViT does at half the
            resolution, in sequences of a fourth of the length: for images that are enlarged, as in detection.
        patch_kernel: ``'keep'`` (default) keeps the pre-trained kernel and lets patches overlap;
            ``'resample'`` resizes the kernel to the stride.
        keep_prefix: Whether class and register tokens attend along (default) or are left out.
        out_indices: Which levels to return, 0 for 1/4 to 3 for 1/32, and in which order. Default: all.
            What lies behind the last of them is not built.
        frozen_stages: -1 (default) freezes nothing, 0 the embedding, i the embedding and i stages.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0; drawn once an image.
            Default: 0.
        with_cp: Recompute the blocks in the backward pass instead of keeping their activations.
        compile_blocks: Compile each block by ``torch.compile``, for all image sizes at once. The first steps take
            longer; names of weights stay. Default: False.
        init_cfg: Weight initialiser, ``dict(type='PlainViT', checkpoint=...)`` for pre-trained weights.

    Raises:
        ValueError: A plain ViT that is unknown or cannot be used, depths that do not sum to its blocks,
            or an option outside the values above.
    """

    def __init__(
        self,
        plain: str,
        depths: str | Sequence[int] = 'standard',
        pooling: str = 'conv',
        attention: str | Sequence[str] = 'grid',
        window_size: int | Sequence[int] = 14,
        grid_spacing: int | Sequence[int] = 1,
        patch_kernel: str = 'keep',
        keep_prefix: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        compile_blocks: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=check_init_cfg(init_cfg))
        vit = build_plain_vit(plain, drop_path_rate)
        self.plain = plain
        self.depth = len(vit.blocks)
        self.embed_dims = vit.embed_dim
        self.depths = check_depths(depths, self.depth, plain)
        self.out_indices = check_out_indices(out_indices)
        self.first_stage = next(i for i, d in enumerate(self.depths) if d)
        self.last_stage = max(self.first_stage, *self.out_indices)
        self.frozen_stages = check_frozen_stages(frozen_stages)
        self.with_cp = check_flag('with_cp', with_cp)
        check_flag('keep_prefix', keep_prefix)
        check_flag('compile_blocks', compile_blocks)
        check_choice('patch_kernel', patch_kernel, PATCH_KERNELS)
        check_choice('pooling', pooling, POOLINGS)

        stride = STRIDES[self.first_stage]
        patch = power_of_two_patch(vit.patch_embed.patch_size[0], stride)
        self.patch_embed = PatchEmbedding(
            vit.patch_embed, stride, patch if patch_kernel == 'keep' else stride
        )
        self.patch = patch
        attention = for_each_stage('attention', attention, str)
        for name in attention:
            check_choice('attention', name, LAYOUTS)
        windows = check_positive('window_size', window_size)
        spacings = check_positive('grid_spacing', grid_spacing)
        self.stages = plan_stages(self.depths, self.last_stage, patch, attention, windows, spacings)

        self._take_embedding(vit, keep_prefix)
        self._take_blocks(vit, compile_blocks)
        self._check_layouts(attention)
        self.pools = nn.ModuleList(
            build_pooling(pooling, self.embed_dims, i) for i in range(len(self.stages) - 1)
        )
        norm = getattr(vit, 'norm', None)
        if norm is None or isinstance(norm, nn.Identity):
            norm = nn.LayerNorm(self.embed_dims, eps=1e-6)
        self.out_norms = nn.ModuleDict({str(i): deepcopy(norm) for i in sorted(self.out_indices)})
        self._freeze_stages()

    def _take_embedding(self, vit: nn.Module, keep_prefix: bool) -> None:
        """Take over what tokens are before the first block: positions, prefix tokens, the norm behind them."""
        self.pos_embed = getattr(vit, 'pos_embed', None)
        self.pos_grid = vit.patch_embed.grid_size
        self._kept_positions = KeptPositions()
        self.prefix_in_pos_embed = 0 if self.pos_embed is None else _prefix_in_pos_embed(vit)
        self.prefix_names = [n for n in PREFIX_TOKENS if keep_prefix and getattr(vit, n, None) is not None]
        for name in self.prefix_names:
            setattr(self, name, getattr(vit, name))
        self.pos_drop = getattr(vit, 'pos_drop', nn.Identity())
        self.norm_pre = getattr(vit, 'norm_pre', nn.Identity())
        self.shared_names = [n for n in SHARED_POSITIONS if getattr(vit, n, None) is not None]
        for name in self.shared_names:
            setattr(self, name, getattr(vit, name))

    def _take_blocks(self, vit: nn.Module, compile_blocks: bool) -> None:
        """Take over the blocks up to the last output, and make them ready for sequences of any size."""
        self.blocks = nn.ModuleList(vit.blocks[: self.stages[-1].stop])
        self.num_prefix_tokens = sum(getattr(self, name).shape[1] for name in self.prefix_names)
        self.positions = positions_of(vit)(self.blocks, self.num_prefix_tokens)
        if compile_blocks and not hasattr(torch.compiler, 'is_compiling'):
            raise ValueError(f'compile_blocks=True needs torch 2.3 or later, and this is {torch.__version__}')
        if compile_blocks and not self.positions.compiles:
            raise ValueError(
                f'compile_blocks=True: the blocks of {self.plain} cannot be compiled for all sizes; leave it out'
            )
        if compile_blocks:
            # Blocks share their code, and so the number of its variants: training or not, of one image or more,
            # with or without stochastic depth. Beyond the limit torch goes on without compiling.
            limits = torch._dynamo.config
            name = 'recompile_limit' if hasattr(limits, 'recompile_limit') else 'cache_size_limit'
            setattr(limits, name, max(getattr(limits, name), 64))
        for block in self.blocks:
            drop_whole_images(block)
            if compile_blocks:
                block.compile(dynamic=True)

    def _check_layouts(self, names: Sequence[str]) -> None:
        for stage, name in zip(self.stages, names[self.first_stage :], strict=False):
            geometry = self._geometry(stage, (1, 1))
            reason = self.positions.why_not(geometry)
            if reason and stage.stop > stage.start:
                raise ValueError(
                    f'attention={name!r} at stride {stage.stride} does not fit the blocks of {self.plain}: '
                    f"{reason}; use attention='grid'"
                )

    def _geometry(self, stage: Stage, size: tuple[int, int]) -> Geometry:
        pitch = stage.stride / self.patch
        return Geometry(size, pitch, stage.layout, self.num_prefix_tokens)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images.

        Args:
            x: Normalised images, (B, 3, H, W) with any H, W >= 1.

        Returns:
            A map (B, C, ceil(H / s), ceil(W / s)) for each of ``out_indices``, s being its stride 4, 8,
            16 or 32, contiguous in memory.

        Raises:
            ValueError: An input that is not 4-D or has another number of channels.
        """
        self._check_images(x)
        h, w = x.shape[-2:]
        tokens, prefix = self._embed(x)
        outs = {}
        for i, stage in enumerate(self.stages, self.first_stage):
            if i > self.first_stage:
                tokens = self.pools[i - self.first_stage - 1](tokens)
            tokens, prefix = self._run_stage(stage, tokens, prefix)
            if i in self.out_indices:
                outs[i] = self.out_norms[str(i)](tokens).permute(0, 3, 1, 2)
            if i == self.first_stage:
                for finer in (j for j in self.out_indices if j < i):
                    size = -(-h // STRIDES[finer]), -(-w // STRIDES[finer])
                    outs[finer] = upsample(self.out_norms[str(finer)](tokens), 2 ** (i - finer), size)
        # mmcv's RoIAlign reads memory as NCHW without looking: channels-last maps, which convolutions hand
        # on to what follows them, would give wrong regions and no error.
        return tuple(outs[i].contiguous() for i in self.out_indices)

    def _check_images(self, x: Tensor) -> None:
        channels = self.patch_embed.proj.in_channels
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(
                f'{type(self).__name__} got an input of shape {tuple(x.shape)}; expected (B, {channels}, H, W)'
            )

    def _embed(self, x: Tensor, stride: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Images (B, 3, H, W) to tokens (B, h, w, C) and prefix tokens (B, P, C) or None."""
        tokens = self.patch_embed(x, stride)
        b = tokens.shape[0]  # len() would be a constant to torch.export
        in_prefix = self.prefix_in_pos_embed
        if self.pos_embed is not None:
            kept, frozen = self._kept_positions, self.frozen_stages >= 0
            tokens = tokens + kept.get(stride, self.pos_embed, in_prefix, self.pos_grid, tokens, frozen)
        tokens = self.norm_pre(self.pos_drop(tokens))
        if not self.prefix_names:
            return tokens, None
        prefix = cat([getattr(self, name) for name in self.prefix_names], dim=1)
        if in_prefix:
            prefix = prefix + self.pos_embed[:, :in_prefix]
        return tokens, self.norm_pre(self.pos_drop(prefix.expand(b, -1, -1)))

    def _run_stage(self, stage: Stage, tokens: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Run the blocks of a stage on the sequences that its layout cuts the map into."""
        if stage.stop == stage.start:
            return tokens, prefix
        size = tuple(tokens.shape[1:3])
        shared = getattr(self, self.shared_names[0]) if self.shared_names else None
        calls = self.positions.calls(self._geometry(stage, size), shared, tokens.device)
        blocks = {index: self.blocks[index] for index in range(stage.start, stage.stop)}
        return run_blocks(blocks, stage.layout, calls, tokens, prefix, self.with_cp and self.training)

    def _maps_after(self, numbers: Iterable[int], x: Tensor) -> dict[int, Tensor]:
        """Token maps (B, h, w, C) of images after these numbers of blocks of the first stage, not normalised."""
        tokens, prefix = self._embed(x)
        found, start = {}, 0
        for stop in sorted(set(numbers)):
            part = replace(self.stages[0], start=start, stop=stop)
            tokens, prefix = self._run_stage(part, tokens, prefix)
            found[stop], start = tokens, stop
        return found

    @property
    def num_layer_ids(self) -> int:
        """Number of values of :meth:`layer_id`: the embedding, each block, and what comes new."""
        return self.depth + 2

    def layer_id(self, name: str) -> int:
        """Depth of a parameter, for layer-wise learning-rate decay.

        Args:
            name: Name of a parameter of this module, as in ``named_parameters()``.

        Returns:
            0 for the embedding (patches, positions, also those that all blocks share, prefix tokens and the
            norm behind them), N + 1 for ``blocks.N``, that of the block before it for a pooling, and depth + 1
            for the out norms.

        Raises:
            ValueError: A name that is none of this module's parameters.
        """
        head = name.partition('.')[0]
        if head in ('patch_embed', 'pos_embed', 'norm_pre', *self.prefix_names, *self.shared_names):
            return 0
        block = re.match(r'blocks\.(\d+)\.', name)
        if block and int(block[1]) < len(self.blocks):
            return int(block[1]) + 1
        if head == 'pools':
            # A pooling feeds every later block, so it must not outrun them: it learns as the block that it follows.
            return self.stages[int(name.split('.')[1])].stop
        if head in self._new_modules():
            return self.depth + 1
        raise ValueError(f'{type(self).__name__} has no parameter {name!r}, so it has no layer id')

    def _new_modules(self) -> tuple[str, ...]:
        """Names of the children that the plain ViT does not have."""
        return 'pools', 'out_norms'

    def train(self, mode: bool = True) -> 'HPViT':
        """Set the training mode; what is frozen stays in evaluation mode. Returns self."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, self.norm_pre, self.pos_drop]
        frozen += [getattr(self, name) for name in self.shared_names]
        for param in (self.pos_embed, *(getattr(self, name) for name in self.prefix_names)):
            if param is not None:
                param.requires_grad_(False)
        for i, stage in enumerate(self.stages, self.first_stage):
            if i >= self.frozen_stages:
                break
            frozen += self.blocks[stage.start : stage.stop]
            levels = range(i + 1) if i == self.first_stage else (i,)
            frozen += [self.out_norms[str(j)] for j in levels if j in self.out_indices]
            frozen += [self.pools[i - self.first_stage - 1]] if i > self.first_stage else []
        for module in frozen:
            module.eval()
            module.requires_grad_(False)


def upsample(tokens: Tensor, scale: int, size: tuple[int, int]) -> Tensor:
    """Token map (B, h, w, C) to (B, C, *size), bilinear, each token covering ``scale`` x ``scale``."""
    x = F.interpolate(tokens.permute(0, 3, 1, 2), scale_factor=scale, mode='bilinear')
    return x[:, :, : size[0], : size[1]]


def _prefix_in_pos_embed(vit: nn.Module) -> int:
    """How many prefix tokens the position embedding of a plain ViT has entries for."""
    return 0 if getattr(vit, 'no_embed_class', False) else getattr(vit, 'num_prefix_tokens', 0)
