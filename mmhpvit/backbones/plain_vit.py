# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The strict baseline: the same plain ViT at one resolution, with a simple feature pyramid."""

from collections.abc import Iterable, Sequence

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers.partition import Layout
from ..layers.simple_pyramid import SimpleFeaturePyramid
from .base import PlainViTBackbone, nchw
from .stages import STRIDES, Stage, expect, is_number
from .timm_vit import build_plain_vit, final_norms


@MODELS.register_module()
class PlainViTPyramid(PlainViTBackbone):
    """The plain ViT at stride 16, with a simple feature pyramid (ViTDet) at 1/4, 1/8, 1/16 and 1/32.

    All levels come from the last map, or each from the map after another number of blocks. They keep the width of the
    ViT, so that the same heads fit as on :class:`HPViT`.

    Args:
        plain: timm name of the plain ViT.
        after: Number of blocks after which to take the map of each level, from 1/4 to 1/32, such as (3, 6, 9, 12). Each
            level then has its own norm. Segmenters profit from it. Default: after all blocks.
        keep_prefix: Whether class and register tokens attend along. Default: True.
        out_indices: Levels to return, 0 for 1/4 to 3 for 1/32, in this order. Default: all.
        frozen_stages: -1 (default) freezes nothing, 0 to 2 the embedding, 3 or 4 the whole plain ViT.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0. Default: 0.
        with_cp: Recompute the blocks in the backward pass. Default: False.
        compile_blocks: Compile each block by ``torch.compile``. Default: False.
        in_channels: Channels of the images, 3 by default. Pre-trained patch kernels of 3 channels are adapted to others
            as timm does: summed for 1, repeated and scaled for more.
        init_cfg: Weight initialiser, ``dict(type='PlainViT', checkpoint=...)`` for pre-trained weights.

    Raises:
        ValueError: As :class:`HPViT`, or ``after`` beyond its blocks or without the last one.
    """

    top_modules = ('out_norms', 'pyramid')

    def __init__(
        self,
        plain: str,
        after: Sequence[int] | None = None,
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
        depth = len(vit.blocks)
        super().__init__(
            vit,
            plain,
            stride=STRIDES[2],
            num_blocks=depth,
            patch_kernel='keep',
            keep_prefix=keep_prefix,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            compile_blocks=compile_blocks,
            init_cfg=init_cfg,
        )
        self.stages = [Stage(STRIDES[2], 0, depth, Layout())]
        self.after = (
            (depth,) * len(STRIDES) if after is None else _check_after(after, self.out_indices, depth)
        )
        self.out_norms = final_norms(vit, (2,) if after is None else self.out_indices)
        self.pyramid = SimpleFeaturePyramid(self.embed_dims, self.out_indices)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images; shapes and errors as :meth:`HPViT.forward`."""
        tokens = self.run_stage_to(self.stages[0], [self.after[i] for i in self.out_indices], *self.embed(x))
        if len(self.out_norms) == 1:
            one = nchw(next(iter(self.out_norms.values()))(tokens[self.depth]))
            maps = dict.fromkeys(self.out_indices, one)
        else:
            maps = {i: nchw(self.out_norms[str(i)](tokens[self.after[i]])) for i in self.out_indices}
        return self.pyramid(maps, tuple(x.shape[-2:]))

    def _frozen_modules(self) -> Iterable[nn.Module]:
        return (*self.blocks, *self.out_norms.values()) if self.frozen_stages > 2 else ()


def _check_after(after: Sequence[int], levels: Sequence[int], depth: int) -> tuple[int, ...]:
    """A number of blocks for each level; one of those that are returned must be all, so that none is unused."""
    fits = isinstance(after, list | tuple) and len(after) == len(STRIDES)
    fits = fits and all(is_number(n) and 1 <= n <= depth for n in after)
    expect(fits, 'after', after, f'{len(STRIDES)} numbers of blocks, 1 to {depth}')
    if max(after[i] for i in levels) < depth:
        raise ValueError(
            f'after={tuple(after)} with out_indices={tuple(levels)}: expected {depth} for one of these levels, so that '
            'no block is left out'
        )
    return tuple(after)
