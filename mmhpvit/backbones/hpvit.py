# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""HPViT: a plain ViT as a hierarchical backbone."""

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers.patch_embed import power_of_two_patch
from ..layers.pooling import POOLINGS, build_pooling
from .base import PlainViTBackbone, nchw
from .stages import STRIDES, check_levels, expect, per_stage, plan_stages, resolve_depths
from .timm_vit import build_plain_vit, final_norms


@MODELS.register_module()
class HPViT(PlainViTBackbone):
    """A plain ViT turned into a backbone with features at 1/4, 1/8, 1/16 and 1/32 of the image.

    After "Rethinking Hierarchies in Pre-trained Plain Vision Transformer" (arXiv 2211.01785): the patch embedding has
    stride 4, and tokens are pooled 2x2 between blocks at three places. How the blocks are split, the attention layout,
    and the treatment of kernel, position embedding and prefix tokens are choices of this package.

    New parameters are called ``pools.i`` and ``out_norms.i``; all others keep timm's names.

    Args:
        plain: timm name of the plain ViT, such as ``'vit_base_patch16_224.mae'``.
        depths: Number of blocks at 1/4, 1/8, 1/16 and 1/32; they must sum to the ViT's blocks. With leading zeros
            the patch embedding starts at the stride of the first stage that has blocks, and finer levels are upsampled
            from it. Or a preset, given here for 12, 24 and 32 blocks with ViT-B's FLOPs at 512x512 relative to
            ``PlainViTPyramid``:
            ``'light'``: (0, 3, 9, 0), (0, 6, 18, 0), (0, 8, 24, 0), 1.6 times;
            ``'standard'`` (default): (2, 2, 6, 2), (4, 4, 12, 4), (5, 5, 17, 5), 3.6 times;
            ``'dense'``: (3, 3, 3, 3), (6, 6, 6, 6), (8, 8, 8, 8), 4.8 times.
        pooling: ``'conv'`` (default) is a 2x2 convolution that starts as the average, ``'pick'`` one that starts as a
            single token of the cell, ``'avg'`` the average without parameters.
        attention: Attention layout of each stage, or one for all. ``'grid'`` (default): a token attends to the tokens
            that are a multiple of the patch size away, as in pre-training; at the stride of the patch size and
            above this equals ``'global'``. ``'window_grid'``: to those of them in its window, so that the cost grows
            linearly with the image. ``'window'``: to all tokens of its window. ``'global'``: to all tokens.
        window_size: Most tokens along the side of a ``'window'`` or ``'window_grid'`` sequence, for each stage or one
            for all. Default: 14, which on a grid is 224 pixels of a patch-16 model.
        grid_spacing: Distance between neighbours of a ``'grid'`` or ``'window_grid'`` sequence in patches, for each
            stage or one for all. Default: 1, as in pre-training. 2 sees the image as a plain ViT does at half the
            resolution, in sequences of a quarter of the length: for enlarged images, as in detection.
        patch_kernel: ``'keep'`` (default) keeps the pre-trained kernel, so that patches overlap; ``'resample'``
            resizes the kernel to the stride.
        keep_prefix: Whether class and register tokens attend along. Default: True.
        out_indices: Levels to return, 0 for 1/4 to 3 for 1/32, in this order. Default: all. Blocks after the
            last of them are not built.
        frozen_stages: -1 (default) freezes nothing, 0 the embedding, i the embedding and i stages.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0, drawn once per image. Default: 0.
        with_cp: Recompute the blocks in the backward pass instead of keeping their activations. Default: False.
        compile_blocks: Compile each block by ``torch.compile`` for all image sizes. The first steps take longer;
            parameter names stay. Default: False.
        in_channels: Channels of the images, 3 by default. Pre-trained patch kernels of 3 channels are adapted to others
            as timm does: summed for 1, repeated and scaled for more.
        init_cfg: Weight initialiser, ``dict(type='PlainViT', checkpoint=...)`` for pre-trained weights.

    Raises:
        ValueError: An unknown or unusable plain ViT, depths that do not sum to its blocks, or an option outside the
            values above.
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
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        vit = build_plain_vit(plain, drop_path_rate, in_channels=in_channels)
        depths = resolve_depths(depths, len(vit.blocks), plain)
        first = next(i for i, d in enumerate(depths) if d)
        last = max(first, *check_levels('out_indices', out_indices))
        patch = power_of_two_patch(vit.patch_embed.patch_size[0], STRIDES[first])
        stages = plan_stages(depths, last, patch, attention, window_size, grid_spacing)
        expect(pooling in POOLINGS, 'pooling', pooling, f'one of {", ".join(POOLINGS)}')
        super().__init__(
            vit,
            plain,
            stride=STRIDES[first],
            num_blocks=stages[-1].stop,
            patch_kernel=patch_kernel,
            keep_prefix=keep_prefix,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            compile_blocks=compile_blocks,
            init_cfg=init_cfg,
        )
        self.depths, self.first_stage, self.stages = depths, first, stages
        for stage, name in zip(stages, per_stage('attention', attention, str)[first:], strict=False):
            reason = self.block_adapter.why_not(self.geometry(stage, (1, 1)))
            if reason and stage.stop > stage.start:
                raise ValueError(
                    f'attention={name!r} at stride {stage.stride} does not fit the blocks of {plain}: {reason}; '
                    "use attention='grid'"
                )
        self.pools = nn.ModuleList(build_pooling(pooling, self.embed_dims, i) for i in range(len(stages) - 1))
        self.out_norms = final_norms(vit, self.out_indices)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images.

        Args:
            x: Normalised images, (B, in_channels, H, W) with any H, W >= 1.

        Returns:
            A map (B, C, ceil(H / s), ceil(W / s)) for each of ``out_indices``, where s is its stride 4, 8, 16 or 32,
            contiguous in memory.

        Raises:
            ValueError: An input that is not 4-D or has another number of channels.
        """
        tokens, prefix = self.embed(x)
        maps = {}
        for i, stage in enumerate(self.stages, self.first_stage):
            if i > self.first_stage:
                tokens = self.pools[i - self.first_stage - 1](tokens)
            tokens, prefix = self.run_stage(stage, tokens, prefix)
            for level in self.out_indices:
                if max(level, self.first_stage) == i:
                    maps[level] = upsample(
                        self.out_norms[str(level)](tokens), stage.stride, STRIDES[level], x
                    )
        # mmcv's RoIAlign reads memory as NCHW without looking: channels-last maps, which convolutions pass on, would
        # give wrong regions and no error.
        return tuple(maps[level].contiguous() for level in self.out_indices)

    def _depth_of(self, name: str) -> int:
        if name.startswith('pools.'):
            # A pooling feeds every later block, so it must not outrun them: it learns as the block that it follows.
            return self.stages[int(name.split('.')[1])].stop
        return super()._depth_of(name)

    def _frozen_modules(self) -> Iterable[nn.Module]:
        for i, stage in enumerate(
            self.stages[: max(0, self.frozen_stages - self.first_stage)], self.first_stage
        ):
            yield from self.blocks[stage.start : stage.stop]
            yield from (self.out_norms[str(j)] for j in self.out_indices if max(j, self.first_stage) == i)
            if i > self.first_stage:
                yield self.pools[i - self.first_stage - 1]


def upsample(tokens: Tensor, stride: int, to_stride: int, image: Tensor) -> Tensor:
    """A token map (B, h, w, C) as (B, C, H / to_stride, W / to_stride), bilinear where it gets finer."""
    x = nchw(tokens)
    if stride == to_stride:
        return x
    rows, columns = (-(-side // to_stride) for side in image.shape[-2:])
    return F.interpolate(x, scale_factor=stride // to_stride, mode='bilinear')[:, :, :rows, :columns]
