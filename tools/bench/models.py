# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The models that are compared, by short names: ours and peers, each a module from an image to its maps."""

import ast
from collections.abc import Callable

import timm
from mmdet.models.backbones import SwinTransformer
from mmengine.config import Config
from mmengine.registry import MODELS
from mmseg.models.backbones import MAE, BEiT
from mmseg.models.necks import Feature2Pyramid
from torch import Tensor, nn

from mmhpvit import HPViT, PlainViTPyramid, TwoScaleViT


class WithPyramid(nn.Module):
    """A ViT of mmseg with mmseg's own pyramid behind its blocks 3, 5, 7 and 11, as in its ADE20K configs."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = Feature2Pyramid(backbone.embed_dims, norm_cfg=dict(type='BN'))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.pyramid(self.backbone(x))


def _swin(depths: list[int], width: int, heads: list[int]) -> nn.Module:
    return SwinTransformer(embed_dims=width, depths=depths, num_heads=heads, window_size=7)


def _mmseg(kind: type[nn.Module], size: tuple[int, int]) -> nn.Module:
    options = dict(img_size=size, patch_size=16, init_values=0.1, out_indices=[3, 5, 7, 11])
    return WithPyramid(kind(**options, **(dict(qv_bias=True) if kind is BEiT else {})))


def _timm(name: str, size: tuple[int, int]) -> nn.Module:
    fixed = not name.startswith('convnext')
    return timm.create_model(name, features_only=True, **(dict(img_size=size) if fixed else {}))


_FIXED: dict[str, Callable[[tuple[int, int]], nn.Module]] = {
    'swin-t': lambda size: _swin([2, 2, 6, 2], 96, [3, 6, 12, 24]),
    'swin-b': lambda size: _swin([2, 2, 18, 2], 128, [4, 8, 16, 32]),
    'mmseg-mae-b': lambda size: _mmseg(MAE, size),
    'mmseg-beit-b': lambda size: _mmseg(BEiT, size),
}


OWN = {'hpvit': HPViT, 'plain': PlainViTPyramid, 'two-scale': TwoScaleViT}


def build(spec: str, size: tuple[int, int]) -> nn.Module:
    """Build a model with random weights.

    Args:
        spec: ``hpvit:NAME``, ``plain:NAME`` or ``two-scale:NAME`` with the timm name of a plain ViT, then options
            as ``:name=value``; ``timm:NAME`` for a backbone of timm as features; ``swin-t`` and the like, see
            the code; or a config file, whose backbone is taken.
        size: Height and width of the image; some peers are built for one size.

    Raises:
        ValueError: A name that is none of these.
    """
    kind, rest, options = parse_spec(spec)
    if kind in OWN:
        model = OWN[kind](rest, **options)
    elif kind == 'timm':
        model = _timm(rest, size)
    elif spec in _FIXED:
        model = _FIXED[spec](size)
    elif spec.endswith('.py'):
        backbone = Config.fromfile(spec).model.backbone
        model = MODELS.build({**backbone, 'init_cfg': None})
    else:
        known = ', '.join((*(f'{kind}:NAME' for kind in OWN), 'timm:NAME', 'CONFIG.py', *_FIXED))
        raise ValueError(f'{spec!r} is no model that can be measured; expected one of {known}')
    return model


def parse_spec(spec: str) -> tuple[str, str, dict]:
    """``kind:NAME:option=value:...`` in its parts; a value is a Python literal, or else a text."""
    kind, _, rest = spec.partition(':')
    name, *options = rest.split(':')
    return kind, name, {key: _value(value) for key, _, value in (o.partition('=') for o in options)}


def _value(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
