# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The plain ViT as it is, and its first blocks once more at a finer stride."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from .hpvit import HPViT, upsample
from .layouts import named_layout
from .options import STRIDES, check_out_indices, is_count, preset_depths
from .plain import build_plain_vit
from .stages import Stage

FINE_STRIDE = STRIDES[1]


@MODELS.register_module()
class TwoScaleViT(HPViT):
    """The plain ViT at 1/16, and at 1/8 what its first blocks give there: twice the plain ViT's operations.

    The same first blocks run twice, with the same weights: on the tokens at 1/16, from which all other blocks go on
    as they were pre-trained to, and on tokens at 1/8 in grids as those of :class:`HPViT`, each of which is the plain
    ViT on a shifted image. Nothing deeper is made of those. So unlike in HPViT the deep map is the plain ViT's to the
    bit (with patches of 16; other kernels are resized), and fine levels come without a learned upsampling. Ours, not of
    a paper; docs/study.md has what is measured of it.

    The map at 1/4 is that at 1/8 upsampled bilinearly, each through a norm of its own; that at 1/32 is that at 1/16
    through 2x2 max pooling, as in :class:`PlainViTPyramid`. All have the width of the ViT.

    Args:
        plain: timm name of the plain ViT.
        fine_depth: How many of its first blocks run at 1/8 as well. Default: a quarter of them.
        grid_spacing: Distance between neighbours of a grid at 1/8 in patches. Default: 1, as in pre-training.
        keep_prefix: Whether class and register tokens attend along. Default: True.
        out_indices: Which levels to return, 0 for 1/4 to 3 for 1/32, and in which order; at least one of 2 and 3.
            Default: all.
        frozen_stages: -1 (default) freezes nothing, 0 or 1 the embedding, 2 the blocks that run twice as well, 3 or 4
            all.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0. Default: 0.
        with_cp: Recompute the blocks in the backward pass.
        compile_blocks: Compile each block by ``torch.compile``. Default: False.
        init_cfg: Weight initialiser, ``dict(type='PlainViT', checkpoint=...)`` for pre-trained weights.

    Raises:
        ValueError: As :class:`HPViT`, or a ``fine_depth`` that is no number of blocks.
    """

    fine: Stage | None = None  # not planned yet when HPViT freezes

    def __init__(
        self,
        plain: str,
        fine_depth: int | None = None,
        grid_spacing: int = 1,
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
        fine_depth = preset_depths('light', depth)[1] if fine_depth is None else fine_depth
        if not is_count(fine_depth) or fine_depth > depth:
            raise ValueError(f'fine_depth={fine_depth!r}: expected 1 to {depth}, the blocks of {plain}')
        if not is_count(grid_spacing):
            raise ValueError(f'grid_spacing={grid_spacing!r}: expected a positive number')
        layout = named_layout('grid', 1, max(1, grid_spacing * self.patch // FINE_STRIDE))
        self.fine = Stage(FINE_STRIDE, 0, fine_depth, layout)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images; shapes and errors as :meth:`HPViT.forward`."""
        self._check_images(x)
        h, w = x.shape[-2:]
        tokens, _ = self._run_stage(self.stages[0], *self._embed(x))
        deep = self.out_norms['2'](tokens).permute(0, 3, 1, 2)
        outs = {2: deep, 3: F.max_pool2d(deep, 2, ceil_mode=True)}
        if min(self.levels) < 2:
            tokens, _ = self._run_stage(self.fine, *self._embed(x, FINE_STRIDE))
        if 1 in self.levels:
            outs[1] = self.out_norms['1'](tokens).permute(0, 3, 1, 2)
        if 0 in self.levels:
            outs[0] = upsample(self.out_norms['0'](tokens), 2, (-(-h // 4), -(-w // 4)))
        return tuple(outs[i].contiguous() for i in self.levels)

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if self.fine is None or self.frozen_stages < 2:
            return
        norms = [self.out_norms[name] for name in ('0', '1') if name in self.out_norms]
        for module in (*self.blocks[: self.fine.stop], *norms):
            module.eval()
            module.requires_grad_(False)
