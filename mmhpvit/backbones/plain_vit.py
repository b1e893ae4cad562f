# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The strict baseline: the same plain ViT at one resolution, with a simple feature pyramid."""

from collections.abc import Sequence
from copy import deepcopy

from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .hpvit import HPViT
from .options import STRIDES, check_after, check_out_indices
from .timm_vit import build_plain_vit


@MODELS.register_module()
class PlainViTPyramid(HPViT):
    """The plain ViT at stride 16 with maps at 1/4, 1/8, 1/16 and 1/32 made from its last one, or from one each.

    The simple feature pyramid of ViTDet (arXiv 2203.16527, section 3): two transposed convolutions for
    1/4, one for 1/8, the map itself for 1/16, 2x2 max pooling for 1/32. All levels keep the width of the
    ViT, so that the same heads fit as on :class:`HPViT`. It has no options of depths, attention and pooling.

    Args:
        plain: timm name of the plain ViT.
        after: After how many blocks the map is taken that each level is made from, from 1/4 to 1/32, such as
            (3, 6, 9, 12), each with a norm of its own; segmenters profit from it. Default: after all of them.
        keep_prefix: Whether class and register tokens attend along. Default: True.
        out_indices: Which levels to return, 0 for 1/4 to 3 for 1/32, and in which order. Default: all.
        frozen_stages: -1 (default) freezes nothing, 0 the embedding, 3 or 4 the whole plain ViT.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0. Default: 0.
        with_cp: Recompute the blocks in the backward pass.
        compile_blocks: Compile each block by ``torch.compile``. Default: False.
        init_cfg: Weight initialiser, ``dict(type='PlainViT', checkpoint=...)`` for pre-trained weights.

    Raises:
        ValueError: As :class:`HPViT`, or ``after`` that are no numbers of its blocks or leave the last ones out.
    """

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
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            plain,
            depths=(0, 0, len(build_plain_vit(plain, device='meta').blocks), 0),
            attention='global',
            keep_prefix=keep_prefix,
            out_indices=(2,),
            frozen_stages=frozen_stages,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
            compile_blocks=compile_blocks,
            init_cfg=init_cfg,
        )
        self.levels = check_out_indices(out_indices)
        self.after = (self.depth,) * len(STRIDES)
        if after is not None:
            self.after = check_after(after, self.levels, self.depth)
            norm = self.out_norms['2']
            self.out_norms = nn.ModuleDict({str(i): deepcopy(norm) for i in sorted(self.levels)})
            self.out_indices = tuple(sorted(self.levels))
        width = self.embed_dims
        makers = {
            '0': lambda: nn.Sequential(_double(width), LayerNorm2d(width), nn.GELU(), _double(width)),
            '1': lambda: _double(width),
            '2': nn.Identity,
            '3': lambda: nn.MaxPool2d(2, ceil_mode=True),
        }
        self.pyramid = nn.ModuleDict({str(i): makers[str(i)]() for i in sorted(self.levels)})
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images; shapes and errors as :meth:`HPViT.forward`."""
        self._check_images(x)
        h, w = x.shape[-2:]
        found = self._maps_after([self.after[i] for i in self.levels], x)
        maps = {
            name: norm(found[self.after[int(name)]]).permute(0, 3, 1, 2)
            for name, norm in self.out_norms.items()
        }
        outs = []
        for i in self.levels:
            size = -(-h // STRIDES[i]), -(-w // STRIDES[i])
            x16 = maps.get(str(i), maps.get('2'))
            outs.append(self.pyramid[str(i)](x16)[:, :, : size[0], : size[1]].contiguous())
        return tuple(outs)

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if self.frozen_stages > 2:
            for norm in self.out_norms.values():
                norm.eval()
                norm.requires_grad_(False)

    def _new_modules(self) -> tuple[str, ...]:
        return (*super()._new_modules(), 'pyramid')


def _double(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
