# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Layer-wise learning-rate decay that asks the backbone for the depth of its parameters."""

import logging
from inspect import signature

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from ..checkpoints.state_dict import without_wrappers

# Learned positions (absolute, tables or axes of relative ones, frequencies), and prefix tokens.
_NO_DECAY = (
    *('pos_embed', 'relative_position_bias_table', 'rel_pos_h', 'rel_pos_w', 'freqs'),
    *('cls_token', 'dist_token', 'reg_token'),
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerIdDecayConstructor(DefaultOptimWrapperConstructor):
    """Optim-wrapper constructor with layer-wise learning-rate decay, for detectors, segmenters, classifiers.

    Every sub-module with mmpretrain's ``get_layer_depth(param_name, prefix)`` is asked for the depth d of
    its parameters out of D depths; they learn at ``lr * decay_rate ** (D - 1 - d)``. All other parameters
    learn at ``lr``. Norms, biases and every other vector, ``pos_embed``, ``cls_token`` and ``reg_token`` have no
    weight decay. Parameters of one learning rate and weight decay form one group; frozen parameters are
    in none. The rule is BEiT's (arXiv 2106.08254, appendix on fine-tuning), used since by MAE and ViTDet.

    Args:
        optim_wrapper_cfg: Config of the optim wrapper, with ``optimizer``.
        paramwise_cfg: ``decay_rate`` (required, in (0, 1]) and ``custom_keys``: parts of parameter names
            with ``lr_mult`` and ``decay_mult`` that multiply what the rules above give, ``decay_mult``
            replacing the exemption from weight decay where it is given. The longest match counts.

    Raises:
        ValueError: No or a wrong ``decay_rate``, an unknown key in ``paramwise_cfg`` or in one
            of its ``custom_keys``, an optimizer without ``lr`` or ``weight_decay`` (when built); a
            model without a module that has ``get_layer_depth``, or flattened by FSDP 1 (when called).
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        decay_rate = paramwise_cfg.pop('decay_rate', None)
        if not isinstance(decay_rate, int | float) or not 0 < decay_rate <= 1:
            raise ValueError(
                f'paramwise_cfg of {type(self).__name__} has decay_rate={decay_rate!r}; '
                'expected a number in (0, 1], such as 0.7'
            )
        if unknown := set(paramwise_cfg) - {'custom_keys'}:
            raise ValueError(
                f'paramwise_cfg of {type(self).__name__} has unknown {sorted(unknown)}; '
                "expected 'decay_rate' and 'custom_keys'"
            )
        for key, given in (paramwise_cfg.get('custom_keys') or {}).items():
            if not isinstance(given, dict) or not set(given) <= {'lr_mult', 'decay_mult'}:
                raise ValueError(
                    f"custom_keys[{key!r}]={given!r} in paramwise_cfg: expected 'lr_mult' and 'decay_mult', with "
                    'a number each, such as dict(lr_mult=0.1)'
                )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if self.base_lr is None or self.base_wd is None:
            raise ValueError(
                f'optim_wrapper.optimizer has lr={self.base_lr} and weight_decay={self.base_wd}; '
                f'{type(self).__name__} scales both, so give both'
            )
        self.decay_rate = float(decay_rate)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optim wrapper over the parameter groups of a model."""
        model = getattr(model, 'module', model)
        wrapper_cfg = self.optim_wrapper_cfg.copy()
        wrapper_cfg.setdefault('type', 'OptimWrapper')
        # A ConfigDict would make the groups ConfigDicts, on which a compiled optimiser step breaks.
        optimizer_cfg = dict(self.optimizer_cfg)
        optimizer_cfg['params'] = self.param_groups(model)
        optimizer = OPTIMIZERS.build(optimizer_cfg)
        return OPTIM_WRAPPERS.build(wrapper_cfg, default_args=dict(optimizer=optimizer))

    def param_groups(self, model: nn.Module) -> list[dict]:
        """Group the trainable parameters of a model by learning rate and weight decay.

        Returns:
            Dicts with ``params``, ``lr``, ``weight_decay`` and ``param_names``, by falling learning rate.
        """
        if any('_fsdp_wrapped_module' in name for name, _ in model.named_modules()):
            raise ValueError(
                'FSDPStrategy flattens weights, so LayerIdDecayConstructor cannot tell which of them are vectors; use '
                "strategy=dict(type='ShardedStrategy')"
            )
        backbones = _modules_with_depths(model)
        groups: dict[tuple[float, float], dict] = {}
        for name, param in model.named_parameters():
            if not param.requires_grad:
                continue
            clean = without_wrappers(name)
            scale = self.decay_rate ** _distance_to_top(clean, backbones)
            undecayed = param.ndim <= 1 or clean.rpartition('.')[2] in _NO_DECAY
            lr, decay = self._scaled(clean, scale, 0.0 if undecayed else 1.0)
            group = groups.setdefault(
                (lr, decay), {'params': [], 'lr': lr, 'weight_decay': decay, 'param_names': []}
            )
            group['params'].append(param)
            group['param_names'].append(clean)
        ordered = sorted(groups.values(), key=lambda g: (-g['lr'], -g['weight_decay']))
        self._log(ordered)
        names = [name for group in ordered for name in group['param_names']]
        for key in self.paramwise_cfg.get('custom_keys', {}):
            if not any(key in name for name in names):
                print_log(
                    f'custom_keys: no trained parameter has {key!r} in its name', 'current', logging.WARNING
                )
        return ordered

    def _scaled(self, name: str, scale: float, decay_scale: float) -> tuple[float, float]:
        custom_keys = self.paramwise_cfg.get('custom_keys', {})
        for key in sorted(custom_keys, key=lambda k: (-len(k), k)):
            if key in name:
                scale *= custom_keys[key].get('lr_mult', 1.0)
                decay_scale = custom_keys[key].get('decay_mult', decay_scale)
                break
        return self.base_lr * scale, self.base_wd * decay_scale

    def _log(self, groups: list[dict]) -> None:
        lines = [
            f'  lr {g["lr"]:.3e}  weight decay {g["weight_decay"]:<6g} {len(g["params"]):>4} parameters'
            for g in groups
        ]
        print_log('Parameter groups:\n' + '\n'.join(lines), logger='current')


def _modules_with_depths(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that know depths by name; mmpretrain's classifiers, which only pass the question on, are left out."""

    def knows(module: nn.Module) -> bool:
        method = getattr(type(module), 'get_layer_depth', None)
        return method is not None and 'prefix' in signature(method).parameters

    found = {without_wrappers(name): module for name, module in model.named_modules() if knows(module)}
    if not found:
        backbone = type(getattr(model, 'backbone', model)).__name__
        raise ValueError(
            f'LayerIdDecayConstructor needs a backbone with get_layer_depth(), and {backbone} has none; use '
            'HPViT or another one of this package, or drop the constructor from optim_wrapper'
        )
    return found


def _distance_to_top(name: str, backbones: dict[str, nn.Module]) -> int:
    """Layers between a parameter and the top of its backbone; 0 for what is in no backbone."""
    for prefix, backbone in backbones.items():
        start = f'{prefix}.' if prefix else ''
        if name.startswith(start):
            depth, num_layers = backbone.get_layer_depth(name, start)
            return num_layers - 1 - depth
    return 0
