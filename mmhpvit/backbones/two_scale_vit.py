# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The plain ViT as it is, and its first blocks once more at finer strides."""

from collections.abc import Sequence
from copy import deepcopy

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from ..layers.partition import named_layout
from .hpvit import HPViT
from .options import STRIDES, check_number, check_out_indices, check_two, preset_depths
from .stages import Stage
from .timm_vit import build_plain_vit


@MODELS.register_module()
class TwoScaleViT(HPViT):
    """The plain ViT at 1/16, and beside it what its embedding gives at 1/4 and its first blocks at 1/8.

    It takes twice the plain ViT's operations. The same first blocks run again, with the same weights: on the tokens at
    1/16, from which all other blocks go on as they were pre-trained to, and on tokens at finer strides in grids as
    those of :class:`HPViT`, each of which is the plain ViT on a shifted image. Nothing deeper is made of those. So
    unlike in HPViT the deep map is the plain ViT's to the bit (with patches of 16; other kernels are resized), and fine
    levels come without a learned upsampling. Ours, not of a paper; docs/study.md has what is measured of it.

    The map at 1/32 is the deep map through 2x2 max pooling, as in :class:`PlainViTPyramid`. That at 1/16 may be the
    plain ViT's after fewer blocks, so that a head gets maps of one more depth. Maps of different depths have a norm
    each. All have the width of the ViT.

    Args:
        plain: timm name of the plain ViT.
        fine_depths: How many of its first blocks run at 1/4 and at 1/8 as well, or one number for both; with 0 the map
            is that of the patch embedding. Default: none at 1/4 and a quarter of them at 1/8. A block at 1/4 costs as
            much as 16 at 1/16, one at 1/8 as much as 4.
        middle_depth: After how many blocks the map at 1/16 is taken; that at 1/32 is taken after all. Default: after
            all as well. With patches of more than 16 pixels prefix tokens are averaged there, as between HPViT's
            stages.
        grid_spacing: Distance between neighbours of a grid in patches, for 1/4 and 1/8 or one for both. Default: 1, as
            in pre-training.
        keep_prefix: Whether class and register tokens attend along. Default: True.
        out_indices: Which levels to return, 0 for 1/4 to 3 for 1/32, and in which order; at least one of 2 and 3.
            Default: all.
        frozen_stages: -1 (default) freezes nothing, 0 or 1 the embedding, 2 the blocks that run again as well, 3 or 4
            all.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0. Default: 0.
        with_cp: Recompute the blocks in the backward pass.
        compile_blocks: Compile each block by ``torch.compile``. Default: False.
        init_cfg: Weight initialiser, ``dict(type='PlainViT', checkpoint=...)`` for pre-trained weights.

    Raises:
        ValueError: As :class:`HPViT`, or ``fine_depths`` or ``middle_depth`` that are no numbers of its blocks.
    """

    fine: tuple[Stage, ...] = ()  # not planned yet when HPViT freezes

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
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        levels = check_out_indices(out_indices)
        if max(levels) < 2:
            raise ValueError(
                f"out_indices={levels}: expected 2 or 3 among them; HPViT with depths='light' has fine levels alone"
            )
        depth = len(build_plain_vit(plain, device='meta').blocks)
        super().__init__(
            plain,
            depths=(0, 0, depth, 0),
            attention='grid',
            keep_prefix=keep_prefix,
            out_indices=sorted({min(level, 2) for level in levels}),
            frozen_stages=frozen_stages,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
            compile_blocks=compile_blocks,
            init_cfg=init_cfg,
        )
        self.levels = levels
        if fine_depths is None:
            fine_depths = 0, preset_depths('light', depth)[1]
        fine_depths = check_two('fine_depths', fine_depths, 0, depth)
        spacings = check_two('grid_spacing', grid_spacing, 1)
        self.fine = tuple(
            Stage(stride, 0, blocks, named_layout('grid', 1, max(1, spacing * self.patch // stride)))
            for stride, blocks, spacing in zip(STRIDES, fine_depths, spacings, strict=False)
        )
        self.middle_depth = (
            depth if middle_depth is None else check_number('middle_depth', middle_depth, 1, depth)
        )
        if self.middle_depth < depth:
            if not {2, 3} <= set(levels):
                raise ValueError(
                    f'middle_depth={middle_depth} is for maps at 1/16 and 1/32: expected 2 and 3 in out_indices, which '
                    f'is {levels}; leave it out'
                )
            self.out_norms['3'] = deepcopy(self.out_norms['2'])
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images; shapes and errors as :meth:`HPViT.forward`."""
        self._check_images(x)
        maps = self._maps_after((self.middle_depth, self.depth), x)
        middle = deep = self.out_norms['2'](maps[self.middle_depth]).permute(0, 3, 1, 2)
        if self.middle_depth < self.depth:
            deep = self.out_norms['3'](maps[self.depth]).permute(0, 3, 1, 2)
        outs = {2: middle, 3: F.max_pool2d(deep, 2, ceil_mode=True)}
        for i in (level for level in self.levels if level < 2):
            tokens, _ = self._run_stage(self.fine[i], *self._embed(x, STRIDES[i]))
            outs[i] = self.out_norms[str(i)](tokens).permute(0, 3, 1, 2)
        return tuple(outs[i].contiguous() for i in self.levels)

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if not self.fine or self.frozen_stages < 2:
            return
        levels = ('0', '1') if self.frozen_stages == 2 else ('0', '1', '3')
        norms = [self.out_norms[name] for name in levels if name in self.out_norms]
        again = max((self.fine[i].stop for i in self.levels if i < 2), default=0)
        for module in (*self.blocks[:again], *norms):
            module.eval()
            module.requires_grad_(False)
