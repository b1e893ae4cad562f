# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Backbones of tools/study/run.py beside HPViT and PlainViTPyramid: the plain ViT with other ways to a pyramid."""

from copy import deepcopy

import torch.nn.functional as F
from mmengine.registry import MODELS
from mmhpvit.backbones.options import STRIDES
from mmseg.models.necks import Feature2Pyramid
from torch import Tensor, nn

from mmhpvit import PlainViTPyramid, TwoScaleViT
from mmhpvit.backbones.hpvit import upsample
from mmhpvit.backbones.stages import Stage
from mmhpvit.layers.partition import named_layout


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
class BareTwoScaleViT(TwoScaleViT):
    """Without a norm on its maps."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.out_norms = nn.ModuleDict({name: nn.Identity() for name in self.out_norms})


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
class JoinedViT(PlainViTPyramid):
    """The pyramid of several depths, to whose maps at 1/4 and 1/8 those of TwoScaleViT are added."""

    def __init__(self, *args, fine_depths: tuple[int, int], **kwargs) -> None:
        super().__init__(*args, after=(3, 6, 9, 12), **kwargs)
        self.fine = [
            Stage(stride, 0, depth, named_layout('grid', 1, self.patch // stride))
            for stride, depth in zip(STRIDES, fine_depths, strict=False)
        ]
        for i in range(len(self.fine)):
            self.out_norms[str(4 + i)] = deepcopy(self.out_norms['0'])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps at 1/4 to 1/32."""
        found = self._maps_after(self.after, x)
        outs = []
        for i, stride in enumerate(STRIDES):
            size = [-(-side // stride) for side in x.shape[-2:]]
            level = self.pyramid[str(i)](self.out_norms[str(i)](found[self.after[i]]).permute(0, 3, 1, 2))
            level = level[:, :, : size[0], : size[1]]
            if i < len(self.fine):
                tokens, _ = self._run_stage(self.fine[i], *self._embed(x, stride))
                level = level + self.out_norms[str(4 + i)](tokens).permute(0, 3, 1, 2)
            outs.append(level.contiguous())
        return tuple(outs)


class _Enlarging(TwoScaleViT):
    """Maps at 1/4 to 1/32, the finest of them enlarged ones, each through a norm of its own."""

    own_stride: int  # the finest that is not enlarged

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps at the levels of ``out_indices``."""
        self._check_images(x)
        tokens, _ = self._run_stage(self.stages[0], *self._embed(x))
        deep = self.out_norms['2'](tokens).permute(0, 3, 1, 2)
        if self.own_stride == 8:
            tokens, _ = self._run_stage(self.fine[1], *self._embed(x, 8))
        levels = []
        for i, stride in enumerate((4, 8)):
            size = tuple(-(-side // stride) for side in x.shape[-2:])
            levels.append(upsample(self.out_norms[str(i)](tokens), self.own_stride // stride, size))
        levels += [deep, F.max_pool2d(deep, 2, ceil_mode=True)]
        return tuple(levels[i].contiguous() for i in self.levels)


@MODELS.register_module()
class SmoothTwoScaleViT(_Enlarging):
    """Without a finer map at 1/4: that at 1/8 enlarged."""

    own_stride = 8


@MODELS.register_module()
class EnlargedPlainViT(_Enlarging):
    """Without finer maps: the plain ViT's own enlarged, with nothing to learn but norms."""

    own_stride = 16
