# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The plain ViT at 1/16, and its first blocks once more at finer strides."""

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from mmengine.registry import MODELS
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..layers.partition import named_layout
from .base import PlainViTBackbone, nchw
from .stages import STRIDES, Stage, check_levels, expect, grid_dilation, is_number, preset_depths
from .timm_vit import build_plain_vit, final_norms


@MODELS.register_module()
class TwoScaleViT(PlainViTBackbone):
    """The plain ViT at 1/16, with its patch embedding at 1/4 and its first blocks at 1/8 as fine levels.

    It costs twice the plain ViT's FLOPs. The same first blocks run twice, with the same weights: on the tokens at 1/16,
    from which all other blocks go on as in pre-training, and on tokens at finer strides in grids like those of
    :class:`HPViT`, each of which is the plain ViT on a shifted image. So unlike in HPViT the deep map is exactly the
    plain ViT's (with patches of 16 pixels, or of 8 or 14 resized to 16), and fine levels need no learned upsampling.
    This backbone is ours, not a paper's; docs/study.md has what was measured.

    The map at 1/32 is the deep map through 2x2 max pooling, as in :class:`PlainViTPyramid`. The map at 1/16 may be
    taken after fewer blocks, so that a head gets one more depth. Maps of different depths have a norm each. All have
    the width of the ViT.

    Args:
        plain: timm name of the plain ViT.
        fine_depths: How many of the first blocks run at 1/4 and at 1/8, or one number for both; 0 takes the map of the
            patch embedding. Default: none at 1/4 and a quarter of the blocks at 1/8. A block at 1/4 costs as much as 16
            at 1/16, one at 1/8 as much as 4.
        middle_depth: Take the map at 1/16 after this number of blocks, and that at 1/32 after all. Default: both after
            all. With patches of more than 16 pixels prefix tokens are averaged there, as between HPViT's stages.
        grid_spacing: Distance between neighbours of a grid in patches, for 1/4 and 1/8 or one for both. Default: 1, as
            in pre-training.
        keep_prefix: Whether class and register tokens attend along. Default: True.
        out_indices: Levels to return, 0 for 1/4 to 3 for 1/32, in this order; at least one of 2 and 3. Default: all.
        frozen_stages: -1 (default) freezes nothing, 0 or 1 the embedding, 2 the blocks that run twice as well, 3 or 4
            all.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0. Default: 0.
        with_cp: Recompute the blocks in the backward pass. Default: False.
        compile_blocks: Compile each block by ``torch.compile``. Default: False.
        in_channels: Channels of the images, 3 by default. Pre-trained patch kernels of 3 channels are adapted to others
            as timm does: summed for 1, repeated and scaled for more.
        init_cfg: Weight initialiser, ``dict(type='PlainViT', checkpoint=...)`` for pre-trained weights.

    Raises:
        ValueError: As :class:`HPViT`, or ``fine_depths`` or ``middle_depth`` beyond its blocks.
    """

    def __init__(
        self,
        plain: str,
        fine_depths: int | Sequence[int] | None = None,
        middle_depth: int | None = None,
        grid_spacing: int | Sequence[int] = 1,
        keep_prefix: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        compile_blocks: bool = False,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        levels = check_levels('out_indices', out_indices)
        if max(levels) < 2:
            raise ValueError(
                f"out_indices={levels}: expected 2 or 3 among them; HPViT with depths='light' has fine levels alone"
            )
        vit = build_plain_vit(plain, drop_path_rate, in_channels=in_channels)
        depth = len(vit.blocks)
        if fine_depths is None:
            fine_depths = 0, preset_depths('light', depth)[1]
        fine_depths = _two('fine_depths', fine_depths, 0, depth)
        spacings = _two('grid_spacing', grid_spacing, 1)
        if middle_depth is None:
            middle_depth = depth
        fits = is_number(middle_depth) and 1 <= middle_depth <= depth
        expect(fits, 'middle_depth', middle_depth, f'1 to {depth}')
        if middle_depth < depth and not {2, 3} <= set(levels):
            raise ValueError(
                f'middle_depth={middle_depth} is for maps at 1/16 and 1/32: expected 2 and 3 in out_indices, which is '
                f'{levels}; leave it out'
            )
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
        self.middle_depth = middle_depth
        self.stages = [self._grid_stage(STRIDES[2], depth, 1)]
        self.fine = [
            self._grid_stage(stride, blocks, spacing)
            for stride, blocks, spacing in zip(STRIDES, fine_depths, spacings, strict=False)
        ]
        norms = {2, *(level for level in levels if level < 2)} | ({3} if middle_depth < depth else set())
        self.out_norms = final_norms(vit, norms)
        self._freeze_stages()

    def _grid_stage(self, stride: int, blocks: int, spacing: int) -> Stage:
        return Stage(stride, 0, blocks, named_layout('grid', 1, grid_dilation(spacing, self.patch, stride)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images; shapes and errors as :meth:`HPViT.forward`."""
        tokens = self.run_stage_to(self.stages[0], (self.middle_depth, self.depth), *self.embed(x))
        maps = {2: nchw(self.out_norms['2'](tokens[self.middle_depth]))}
        deep = nchw(self.out_norms['3'](tokens[self.depth])) if self.middle_depth < self.depth else maps[2]
        maps[3] = F.max_pool2d(deep, 2, ceil_mode=True)
        for level in (i for i in self.out_indices if i < 2):
            fine, _ = self.run_stage(self.fine[level], *self.embed(x, STRIDES[level]))
            maps[level] = nchw(self.out_norms[str(level)](fine))
        return tuple(maps[level].contiguous() for level in self.out_indices)

    def _frozen_modules(self) -> Iterable[nn.Module]:
        if self.frozen_stages > 2:
            return (*self.blocks, *self.out_norms.values())
        if self.frozen_stages < 2:
            return ()
        fine = [level for level in self.out_indices if level < 2]
        twice = max((self.fine[level].stop for level in fine), default=0)
        return (*self.blocks[:twice], *(self.out_norms[str(level)] for level in fine))


def _two(option: str, value: int | Sequence[int], least: int, most: int | None = None) -> tuple[int, int]:
    """A number for 1/4 and one for 1/8, from one for both or a list, in a range."""
    values = to_2tuple(value)
    fits = len(values) == 2 and all(
        is_number(v) and least <= v <= (v if most is None else most) for v in values
    )
    bounds = f'{least} or more' if most is None else f'{least} to {most}'
    expect(fits, option, value, f'two numbers, for 1/4 and 1/8, or one for both, of {bounds}')
    return tuple(values)
