# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""A plain ViT taken apart: embed images, run blocks on token maps, freeze, tell the depth of a parameter."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from inspect import signature

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, cat, nn

from ..layers.block_adapters import Geometry, adapter_of
from ..layers.block_runner import run_blocks
from ..layers.patch_embed import PATCH_KERNELS, PatchEmbedding, power_of_two_patch
from ..layers.pos_embed import interpolate_positions
from .stages import STRIDES, Stage, check_levels, expect, is_number
from .timm_names import timm_name
from .timm_vit import PREFIX_TOKENS, SHARED_POSITIONS

# Blocks share their code, and so torch's limit of its compiled variants: in training or not, one image or more, with
# stochastic depth or without. Beyond the limit torch runs them uncompiled.
_COMPILED_VARIANTS = 64


class PlainViTBackbone(BaseModule):
    """What :class:`HPViT`, :class:`TwoScaleViT` and :class:`PlainViTPyramid` share: a timm ViT taken apart.

    Parameters keep timm's names (``patch_embed.proj``, ``pos_embed``, ``cls_token``, ``blocks.N``), so the weights of
    the plain ViT fit. Subclasses add ``out_norms``, one norm for each map that is normalised, and what else they need.

    Args:
        vit: The plain ViT that :func:`build_plain_vit` built; its modules are taken over.
        plain: Its timm name, as :func:`build_plain_vit` takes it.
        stride: Stride of the patch embedding in pixels.
        num_blocks: How many of its blocks to keep.
        patch_kernel: ``'keep'`` the pre-trained kernel or ``'resample'`` it to the stride.
        keep_prefix, out_indices, frozen_stages, with_cp, compile_blocks, init_cfg: As for :class:`HPViT`.

    Attributes:
        plain: timm name of the plain ViT.
        depth: Blocks of the plain ViT.
        embed_dims: Its width C.
        in_channels: Channels of the images.
        patch: Side of its patches in pixels, as a power of two.
        num_prefix_tokens: Class and register tokens that attend along.

    Raises:
        ValueError: An option outside its values.
    """

    # Children that train at the rate of the head.
    top_modules: tuple[str, ...] = ('out_norms',)

    def __init__(
        self,
        vit: nn.Module,
        plain: str,
        *,
        stride: int,
        num_blocks: int,
        patch_kernel: str,
        keep_prefix: bool,
        out_indices: Sequence[int],
        frozen_stages: int,
        with_cp: bool,
        compile_blocks: bool,
        init_cfg: dict | list[dict] | None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        for option, flag in dict(
            keep_prefix=keep_prefix, with_cp=with_cp, compile_blocks=compile_blocks
        ).items():
            expect(isinstance(flag, bool), option, flag, 'True or False')
        expect(
            patch_kernel in PATCH_KERNELS, 'patch_kernel', patch_kernel, f'one of {", ".join(PATCH_KERNELS)}'
        )
        frozen = is_number(frozen_stages) and -1 <= frozen_stages <= len(STRIDES)
        expect(frozen, 'frozen_stages', frozen_stages, f'-1 (none) to {len(STRIDES)} (all)')
        initialisers = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg] if init_cfg else []
        fits = all(isinstance(one, dict) and 'type' in one for one in initialisers)
        expect(
            fits, 'init_cfg', init_cfg, "dict(type='PlainViT', checkpoint=FILE), or None for random weights"
        )
        self.out_indices = check_levels('out_indices', out_indices)
        self.plain, self.depth, self.embed_dims = timm_name(plain), len(vit.blocks), vit.embed_dim
        self.in_channels = vit.patch_embed.proj.in_channels
        self.frozen_stages, self.with_cp = frozen_stages, with_cp
        self._take_embedding(vit, stride, patch_kernel, keep_prefix)
        self._take_blocks(vit, num_blocks, compile_blocks)

    def _take_embedding(self, vit: nn.Module, stride: int, patch_kernel: str, keep_prefix: bool) -> None:
        """Take over what turns an image into tokens: patches, positions, prefix tokens, the norm behind them."""
        self.patch = power_of_two_patch(vit.patch_embed.patch_size[0], stride)
        kernel = self.patch if patch_kernel == 'keep' else stride
        self.patch_embed = PatchEmbedding(vit.patch_embed, stride, kernel)
        self.pos_embed = getattr(vit, 'pos_embed', None)
        self.pos_grid = vit.patch_embed.grid_size
        in_pos_embed = self.pos_embed is not None and not getattr(vit, 'no_embed_class', False)
        self.prefix_in_pos_embed = getattr(vit, 'num_prefix_tokens', 0) if in_pos_embed else 0
        self.prefix_names = [n for n in PREFIX_TOKENS if keep_prefix and getattr(vit, n, None) is not None]
        self.shared_names = [n for n in SHARED_POSITIONS if getattr(vit, n, None) is not None]
        for name in (*self.prefix_names, *self.shared_names):
            setattr(self, name, getattr(vit, name))
        self.num_prefix_tokens = sum(getattr(self, name).shape[1] for name in self.prefix_names)
        self.pos_drop = getattr(vit, 'pos_drop', nn.Identity())
        self.norm_pre = getattr(vit, 'norm_pre', nn.Identity())

    def _take_blocks(self, vit: nn.Module, num_blocks: int, compile_blocks: bool) -> None:
        """Take over the first blocks, and make them ready for attention sequences of any size."""
        self.blocks = nn.ModuleList(vit.blocks[:num_blocks])
        self.block_adapter = adapter_of(vit)
        self.block_adapter.prepare(self.blocks, self.num_prefix_tokens)
        if not compile_blocks:
            return
        if not hasattr(torch.compiler, 'is_compiling'):
            raise ValueError(f'compile_blocks=True needs torch 2.3 or later, and this is {torch.__version__}')
        if not self.block_adapter.compiles:
            raise ValueError(
                f'compile_blocks=True: the blocks of {self.plain} cannot be compiled for all sizes; leave it out'
            )
        limit = dict(recompile_limit=_COMPILED_VARIANTS)
        if 'recompile_limit' not in signature(torch.compile).parameters:
            limit = {}
            print_log(
                f'compile_blocks=True: torch {torch.__version__} stops compiling after a few variants of a block; set '
                f'torch._dynamo.config.cache_size_limit = {_COMPILED_VARIANTS} before training',
                'current',
                logging.WARNING,
            )
        for block in self.blocks:
            block.compile(dynamic=True, **limit)

    def embed(self, images: Tensor, stride: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Turn images into the tokens that the first block takes.

        Args:
            images: Normalised images, (B, in_channels, H, W).
            stride: Stride of the patches in pixels. Default: that of the patch embedding.

        Returns:
            Tokens, (B, ceil(H / stride), ceil(W / stride), C), and prefix tokens, (B, P, C) or None.

        Raises:
            ValueError: An input that is not 4-D or has another number of channels.
        """
        channels = self.in_channels
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f'{type(self).__name__} got an input of shape {tuple(images.shape)}; expected (B, {channels}, H, W)'
            )
        tokens = self.patch_embed(images, stride)
        b, h, w, _ = tokens.shape
        in_prefix = self.prefix_in_pos_embed
        if self.pos_embed is not None:
            tokens = tokens + interpolate_positions(self.pos_embed, in_prefix, self.pos_grid, (h, w))
        tokens = self.norm_pre(self.pos_drop(tokens))
        if not self.prefix_names:
            return tokens, None
        prefix = cat([getattr(self, name) for name in self.prefix_names], dim=1)
        if in_prefix:
            prefix = prefix + self.pos_embed[:, :in_prefix]
        return tokens, self.norm_pre(self.pos_drop(prefix.expand(b, -1, -1)))

    def run_stage(self, stage: Stage, tokens: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Run the blocks of a stage on the attention sequences of a token map.

        Args:
            stage: Which blocks, at which stride, in which layout.
            tokens: Token map, (B, h, w, C).
            prefix: Prefix tokens, (B, P, C) or None; they attend along in every sequence.

        Returns:
            The token map and the prefix tokens, averaged over the sequences, in the shapes that came in.
        """
        if stage.stop == stage.start:
            return tokens, prefix
        geometry = self.geometry(stage, tuple(tokens.shape[1:3]))
        shared = getattr(self, self.shared_names[0]) if self.shared_names else None
        blocks = {index: self.blocks[index] for index in range(stage.start, stage.stop)}
        recompute = self.with_cp and self.training
        return run_blocks(blocks, self.block_adapter, geometry, shared, tokens, prefix, recompute)

    def run_stage_to(
        self, stage: Stage, stops: Iterable[int], tokens: Tensor, prefix: Tensor | None
    ) -> dict[int, Tensor]:
        """Run a stage and keep its token map, (B, h, w, C), after each of these numbers of blocks."""
        maps, start = {}, stage.start
        for stop in sorted(set(stops)):
            tokens, prefix = self.run_stage(replace(stage, start=start, stop=stop), tokens, prefix)
            maps[stop], start = tokens, stop
        return maps

    def geometry(self, stage: Stage, size: tuple[int, int]) -> Geometry:
        """Where the tokens of a map of ``size`` (h, w) lie at a stage, and how it is cut into sequences."""
        return Geometry(size, stage.stride / self.patch, stage.layout, self.num_prefix_tokens)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay, as mmpretrain's constructor asks for it.

        Args:
            param_name: Name of a parameter, as in ``named_parameters()`` of a model.
            prefix: What names of this backbone's parameters begin with there, such as ``'backbone.'``.

        Returns:
            The depth, and the number of depths: 0 for the embedding (patches, positions, prefix tokens), N + 1 for
            ``blocks.N``, and the last one for norms and pyramids of the levels and for names without the prefix. A
            pooling of HPViT has the depth of the block before it.

        Raises:
            ValueError: A name with the prefix that is none of this backbone's parameters.
        """
        num_layers = self.depth + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        return self._depth_of(param_name.removeprefix(prefix)), num_layers

    def _depth_of(self, name: str) -> int:
        head = name.partition('.')[0]
        if head in ('patch_embed', 'pos_embed', 'norm_pre', *self.prefix_names, *self.shared_names):
            return 0
        block = re.match(r'blocks\.(\d+)\.', name)
        if block and int(block[1]) < len(self.blocks):
            return int(block[1]) + 1
        if head in self.top_modules:
            return self.depth + 1
        raise ValueError(f'{type(self).__name__} has no parameter {name!r}, so it has no layer depth')

    def train(self, mode: bool = True) -> 'PlainViTBackbone':
        """Set the training mode; frozen parts stay in evaluation mode. Returns self."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        shared = [getattr(self, name) for name in self.shared_names]
        for module in (self.patch_embed, self.norm_pre, self.pos_drop, *shared, *self._frozen_modules()):
            module.eval()
            module.requires_grad_(False)
        for param in (self.pos_embed, *(getattr(self, name) for name in self.prefix_names)):
            if param is not None:
                param.requires_grad_(False)

    def _frozen_modules(self) -> Iterable[nn.Module]:
        """What ``frozen_stages`` freezes beyond the embedding."""
        raise NotImplementedError


def nchw(tokens: Tensor) -> Tensor:
    """A token map (B, h, w, C) as a view (B, C, h, w)."""
    return tokens.permute(0, 3, 1, 2)
