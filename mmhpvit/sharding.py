# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Training what does not fit: weights, gradients and optimiser state in parts over the processes."""

from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import broadcast, is_main_process
from mmengine.registry import STRATEGIES
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@STRATEGIES.register_module()
class ShardedStrategy(DDPStrategy):
    """torch's ``fully_shard`` (FSDP 2, arXiv 2304.11277) over the whole model as one unit.

    Each of N processes keeps 1/N of the weights, of their gradients and of the optimiser's state, which for AdamW in
    float32 is 16 bytes a parameter without it. All weights are gathered for a step: once in the forward pass and
    freed after the backward pass, whatever sizes the images of the processes have. Weights keep names and shapes, so
    ``LayerIdDecayConstructor`` works, and a checkpoint has the weights as one process would write them; the
    optimiser's state in it goes by the names of weights, so training is resumed with this strategy.

    For ``runner_type='FlexibleRunner'``; its arguments are those of mmengine's ``DDPStrategy``.
    """

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        model = self.convert_model(model.to(get_device()))
        for tensor in (*model.parameters(), *model.buffers()):
            broadcast(tensor.data)  # what chance has made, as DistributedDataParallel does
        fully_shard(model)
        return model

    def model_state_dict(self) -> dict:
        """All weights on the main process, an empty dict on the others; to be called on all of them."""
        return get_model_state_dict(self.model, options=_WHOLE)

    def optim_state_dict(self) -> dict:
        """The optimiser's whole state on the main process; to be called on all of them."""
        return get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, options=_WHOLE)

    def load_model_state_dict(self, state_dict: dict, *, strict: bool = False, **kwargs) -> None:
        """Give each process its part of whole weights.

        Raises:
            RuntimeError: With ``strict``, a weight that is missing or unknown.
        """
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.model, state_dict, options=options)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Give each process its part of the optimiser's whole state."""
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, state_dict, options=options)

    def save_checkpoint(self, filename: str, **kwargs) -> None:
        """Write one file from the main process; to be called on all, as its content is gathered from them."""
        write = super(DDPStrategy, self).save_checkpoint
        if is_main_process():
            write(filename, **kwargs)
            return
        self.model_state_dict()
        if kwargs.get('save_optimizer', True) and hasattr(self, 'optim_wrapper'):
            self.optim_state_dict()
