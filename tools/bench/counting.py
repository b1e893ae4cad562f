# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Counting without computing: operations by kind and stage, and memory by the tensors that live.

Everything runs on fake tensors, so that any model at any size is counted in seconds on any machine.
"""

import weakref
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmhpvit.backbones.base import PlainViTBackbone

_KINDS = {'addmm': 'linear', 'mm': 'linear', 'bmm': 'attention', 'convolution': 'convolution'}


def channels_of(model: nn.Module) -> int:
    """Channels of the images of a model: its own number if it is of this package, or else 3."""
    return model.in_channels if isinstance(model, PlainViTBackbone) else 3


def _attention_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def count_flops(model: nn.Module, size: tuple[int, int], batch: int = 1) -> dict[str, dict[str, int]]:
    """Operations of a forward pass, two for a multiplication and an addition.

    Args:
        model: Any module from an image to its maps.
        size: Height and width of the image.
        batch: Number of images.

    Returns:
        Stage (``'1/4'`` to ``'1/32'`` of an HPViT, else ``'all'``) to kind (``'embedding'``, ``'linear'``,
        ``'attention'``, ``'pooling'``, ``'convolution'``) to operations.
    """
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={cpu_attention: _attention_flops})
    # Operations inside of compiled code are not seen.
    eager = torch.compiler.set_stance('force_eager')
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter, eager:
        model(torch.empty(batch, channels_of(model), *size))
    named = counter.get_flop_counts()
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, ops in named.items():
        path = name.partition('.')[2]
        for op, flops in ops.items():
            # A module's count holds those of its descendants, which are listed on their own.
            within = sum(named[n].get(op, 0) for n in named if _nearest(n, named) == name)
            if flops > within and name != 'Global':
                counts[_stage(model, path)][_kind(path, str(op).rpartition('.')[2])] += flops - within
    return {stage: dict(kinds) for stage, kinds in counts.items()}


def total_flops(model: nn.Module, size: tuple[int, int]) -> int:
    """Operations of a forward pass on one image of that height and width, all kinds together."""
    return sum(sum(kinds.values()) for kinds in count_flops(model, size).values())


def _nearest(name: str, named: dict) -> str:
    """The nearest module above that is listed; lists of modules are not."""
    above = name.rpartition('.')[0]
    while above and above not in named:
        above = above.rpartition('.')[0]
    return above


def _kind(path: str, op: str) -> str:
    if 'patch_embed' in path:
        return 'embedding'
    if path.startswith('pools.'):
        return 'pooling'
    return _KINDS.get(op, 'attention')


def _stage(model: nn.Module, path: str) -> str:
    if not isinstance(model, PlainViTBackbone):
        return 'all'
    part, _, rest = path.partition('.')
    index = int(rest.partition('.')[0]) if part in ('blocks', 'pools') else 0
    for i, stage in enumerate(model.stages):
        if (part == 'blocks' and stage.start <= index < stage.stop) or (part == 'pools' and i == index + 1):
            return f'1/{stage.stride}'
    return f'1/{model.stages[0].stride}'


class LiveMemory(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make, until nobody holds them.

    Attributes:
        now, peak: Bytes that live, and the most that ever lived.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that no operation made, such as a parameter."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or storage.nbytes() == 0:
            return
        size = storage.nbytes()

        def gone(_, key=key, size=size) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return out


@dataclass
class Memory:
    """Bytes that a model takes for one batch.

    Attributes:
        inference: Most that lives in a forward pass without gradients, beside the parameters.
        training: Most that lives in a forward and backward pass, beside parameters, gradients and optimiser.
        saved: What the forward pass keeps for the backward pass, parameters left out.
        fixed: Parameters, their gradients and AdamW's two averages, all in float32.
    """

    inference: int
    training: int
    saved: int
    fixed: int


def count_memory(
    model: nn.Module, size: tuple[int, int], batch: int = 1, autocast: torch.dtype | None = None
) -> Memory:
    """Memory of a model, by counting the tensors that would live.

    Args:
        model: Any module from an image to its maps.
        size: Height and width of the image.
        batch: Number of images.
        autocast: Type of mixed precision; None is float32.

    Returns:
        What would be taken with attention that keeps no table of its scores, as on a GPU.
    """
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    precision = torch.autocast('cpu', autocast or torch.bfloat16, enabled=autocast is not None)
    mode = model.training
    with FakeTensorMode(allow_non_fake_inputs=True), torch.compiler.set_stance('force_eager'):
        model.eval()
        with LiveMemory() as forward, torch.no_grad(), precision:
            model(torch.empty(batch, channels_of(model), *size))
        model.train()
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own and not isinstance(tensor, nn.Parameter):
                saved[storage._cdata] = storage.nbytes()
            return tensor

        with LiveMemory() as whole:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
                outs = model(torch.empty(batch, channels_of(model), *size))
                loss = sum(out.float().sum() for out in outs)
            loss.backward()
        training = whole.peak
        model.zero_grad(set_to_none=True)
    model.train(mode)
    return Memory(forward.peak, training, sum(saved.values()), 4 * parameters)
