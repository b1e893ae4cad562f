# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Backbones of tools/study.py beside HPViT and PlainViTPyramid: the plain ViT with other ways to a pyramid."""

import torch.nn.functional as F
from mmengine.registry import MODELS
from mmseg.models.necks import Feature2Pyramid
from torch import Tensor

from mmhpvit import HPViT, PlainViTPyramid


@MODELS.register_module()
class UpsampledPlainViT(PlainViTPyramid):
    """The plain ViT on the image enlarged twice: its map is at 1/8 and costs at least four times the plain ViT's."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, out_indices=(1, 2, 3), **kwargs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps at 1/4 to 1/32 of the image as it is, by way of those of the enlarged one at 1/8 to 1/32."""
        levels = super().forward(F.interpolate(x, scale_factor=2, mode='bilinear'))
        return (*levels, F.max_pool2d(levels[-1], 2, ceil_mode=True))


@MODELS.register_module()
class BlocksPlainViT(PlainViTPyramid):
    """The plain ViT with mmseg's Feature2Pyramid behind each quarter of its blocks, as in mmseg's configs of MAE."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.pyramid = Feature2Pyramid(self.embed_dims, norm_cfg=dict(type='BN'))
        self.after = [self.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps at 1/4 to 1/32, each from another quarter of the blocks."""
        outputs = {}
        hooks = [
            self.blocks[i].register_forward_hook(
                lambda _, args, out, i=i: outputs.setdefault(i, []).append(out)
            )
            for i in self.after
        ]
        try:
            super(PlainViTPyramid, self).forward(x)
        finally:
            for hook in hooks:
                hook.remove()
        h, w = (-(-side // 16) for side in x.shape[-2:])
        return tuple(self.pyramid([self._map(outputs[i], h, w) for i in self.after]))

    def _map(self, parts: list[Tensor], h: int, w: int) -> Tensor:
        tokens = parts[0][:, self.num_prefix_tokens :]  # one sequence an image, so one part
        return tokens.transpose(1, 2).unflatten(2, (h, w))


@MODELS.register_module()
class EarlyLevelsViT(PlainViTPyramid):
    """The plain ViT at 1/16 and 1/32, and at 1/4 and 1/8 what its first quarter of blocks gives at 1/8.

    The first blocks run twice, at 1/8 on the grids of HPViT and at 1/16, with the same weights: 2 times the plain ViT's
    token-blocks. Unlike in HPViT nothing of the deeper blocks' input is pooled, so they compute what they were
    pre-trained to.
    """

    def __init__(self, plain: str, **kwargs) -> None:
        super().__init__(plain, out_indices=(2, 3), **kwargs)
        self.early = HPViT(plain, 'light', out_indices=(0, 1))
        # The convolutions differ by their stride alone.
        self.early.patch_embed.proj.weight = self.patch_embed.proj.weight
        self.early.patch_embed.proj.bias = self.patch_embed.proj.bias
        for name in ('pos_embed', 'norm_pre', 'pos_drop', *self.early.prefix_names):
            setattr(self.early, name, getattr(self, name))
        self.early.blocks = self.blocks[: len(self.early.blocks)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps at 1/4 to 1/32."""
        return (*self.early(x), *super().forward(x))

    def _new_modules(self) -> tuple[str, ...]:
        return (*super()._new_modules(), 'early')
