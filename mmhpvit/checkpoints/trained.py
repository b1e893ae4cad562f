# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""What a training of mmengine writes beside the weights: its config, its length and its classes."""

import ast
from typing import Any


def trained_as(meta: dict) -> str | None:
    """The backbone, iteration and classes of a training in one line.

    Args:
        meta: The ``meta`` of its checkpoint.

    Returns:
        Such as ``'HPViT of vit_tiny_patch16_224, iteration 3, 2 classes (cat, dog)'``; None if no training wrote it.
    """
    text, iteration, data = (meta.get(key) for key in ('cfg', 'iter', 'dataset_meta'))
    if not isinstance(text, str) or not isinstance(iteration, int):
        return None
    try:
        backbone = backbone_in(text)
    except (SyntaxError, ValueError):  # a config that is no plain data
        backbone = {}
    kind = str(backbone.get('type', 'unknown backbone')).rpartition('.')[2]
    parts = [f'{kind} of {backbone["plain"]}' if 'plain' in backbone else kind, f'iteration {iteration}']
    classes = data.get('classes') if isinstance(data, dict) else None
    if isinstance(classes, list | tuple):
        more = ', ...' if len(classes) > 8 else ''
        parts.append(f'{len(classes)} classes ({", ".join(map(str, classes[:8]))}{more})')
    return ', '.join(parts)


def backbone_in(text: str) -> dict:
    """``model.backbone`` of a config in mmengine's notation, which is parsed and not run; empty if it has none.

    Raises:
        SyntaxError: Not Python.
        ValueError: More than numbers, strings and containers of them.
    """
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'model':
            parts = getattr(node.value, 'keywords', ())
            return next((_value(part.value) for part in parts if part.arg == 'backbone'), {})
    return {}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict' and not node.args:
        parts = [{k.arg: _value(k.value)} if k.arg else _value(k.value) for k in node.keywords]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(node, ast.Dict):
        return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(one) for one in node.elts]
    return ast.literal_eval(node)
