# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Training what does not fit: weights, gradients and optimiser state in parts over the processes."""

import re
from collections.abc import Sequence

from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
from mmengine.device import get_device
from mmengine.dist import broadcast, is_distributed, is_main_process
from mmengine.registry import STRATEGIES
from torch import nn


@STRATEGIES.register_module()
class ShardedStrategy(DDPStrategy):
    """torch's ``fully_shard`` (FSDP 2, arXiv 2304.11277) over the whole model as one unit; torch 2.6 and later.

    Each of N processes keeps 1/N of the weights, of their gradients and of the optimiser's state, which for AdamW in
    float32 is 16 bytes a parameter without it. All weights are gathered for a step: once in the forward pass and
    freed after the backward pass, whatever sizes the images of the processes have. Weights keep names and shapes, so
    ``LayerIdDecayConstructor`` works, and a checkpoint has the weights as one process would write them; the
    optimiser's state in it goes by the names of weights, so training is resumed with this strategy.

    For ``runner_type='FlexibleRunner'``; its arguments are those of mmengine's ``DDPStrategy``. A single
    process, without a launcher, has everything.

    Raises:
        ValueError: The model has a scalar parameter, which cannot be cut (when prepared).
    """

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not is_distributed():
            return SingleDeviceStrategy._wrap_model(self, model)
        from torch.distributed.fsdp import fully_shard

        scalars = [name for name, param in model.named_parameters() if param.dim() == 0]
        if scalars:
            raise ValueError(
                f'ShardedStrategy cannot cut scalars, and the model has {scalars[0]} (ATSS and FCOS heads have such); '
                'leave runner_type and strategy out'
            )
        model = self.convert_model(model.to(get_device()))
        for tensor in (*model.parameters(), *model.buffers()):
            broadcast(tensor.data)  # what chance has made, as DistributedDataParallel does
        fully_shard(model)
        return model

    def model_state_dict(self) -> dict:
        """All weights on the main process, an empty dict on the others; to be called on all of them."""
        if not is_distributed():
            return super().model_state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(
            self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )

    def optim_state_dict(self) -> dict:
        """The optimiser's whole state on the main process; to be called on all of them."""
        if not is_distributed():
            return super().optim_state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found = get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, options=options)
        # What mmengine keeps beside the optimiser: the loss scale, the rates before scaling.
        own = self.optim_wrapper.state_dict()
        return found | {'wrapper': {k: v for k, v in own.items() if k not in ('state', 'param_groups')}}

    def load_model_state_dict(
        self,
        state_dict: dict,
        *,
        strict: bool = False,
        revise_keys: Sequence[tuple[str, str]] = ((r'^module.', ''),),
    ) -> None:
        """Give each process its part of whole weights; as in mmengine, those of other names or shapes are logged.

        Raises:
            RuntimeError: With ``strict``, a weight that is missing, unknown or of another shape.
        """
        if not is_distributed():
            super().load_model_state_dict(state_dict, strict=strict, revise_keys=revise_keys)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        for pattern, replacement in revise_keys:
            state_dict = {re.sub(pattern, replacement, key): value for key, value in state_dict.items()}
        own = {key: tuple(value.shape) for key, value in self.model.state_dict().items()}
        shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
        wrong = [f'{key} is missing' for key in own if key not in shapes]
        wrong += [f'{key} is unknown' for key in shapes if key not in own]
        wrong += [
            f'{key} has {shape}, expected {own[key]}'
            for key, shape in shapes.items()
            if own.get(key, shape) != shape
        ]
        if wrong and strict:
            raise RuntimeError('; '.join(wrong))
        if wrong:
            self.logger.warning('Weights that were not loaded: ' + '; '.join(wrong))
        fitting = {key: value for key, value in state_dict.items() if own.get(key) == shapes[key]}
        set_model_state_dict(
            self.model, fitting, options=StateDictOptions(full_state_dict=True, strict=False)
        )

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Give each process its part of the optimiser's whole state."""
        if not is_distributed():
            super().load_optim_state_dict(state_dict)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        if 'wrapper' not in state_dict:
            raise ValueError(
                'the optimiser state of this checkpoint was not written with ShardedStrategy, and it is resumed by '
                'names; go on with the strategy that it was written with, or start from its weights (load_from)'
            )
        own = dict(state_dict.pop('wrapper'))
        names = [name for group in state_dict['param_groups'] for name in group['params']]
        if new := [name for name in names if name not in state_dict['state']]:
            # torch's optimisers have no state of what never got a gradient.
            self.logger.warning(f'No optimiser state in the checkpoint for {", ".join(new)}: begun anew')
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, state_dict, options=options)
        if 'loss_scaler' in own and hasattr(self.optim_wrapper, 'loss_scaler'):
            self.optim_wrapper.loss_scaler.load_state_dict(own['loss_scaler'])
        self.optim_wrapper.base_param_settings = own.get(
            'base_param_settings', self.optim_wrapper.base_param_settings
        )

    def resume(self, filename: str, **kwargs) -> dict:
        """As mmengine's, with the file in the host's memory, since it holds what all processes have together."""
        return super().resume(filename, **kwargs | dict(map_location='cpu'))

    def save_checkpoint(self, filename: str, **kwargs) -> None:
        """Write one file from the main process; to be called on all, as its content is gathered from them."""
        write = super(DDPStrategy, self).save_checkpoint
        if is_main_process():
            write(filename, **kwargs)
            return
        self.model_state_dict()
        if kwargs.get('save_optimizer', True) and hasattr(self, 'optim_wrapper'):
            self.optim_state_dict()
