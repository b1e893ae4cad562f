# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""How long models take, side by side, and how long their matrix products alone would."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass
class Times:
    """Seconds of every round of one model; ``median`` of them, and the ``limit`` measured beside it."""

    seconds: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median over the rounds of time over limit, each pair measured one after the other."""
        return median(s / limit for s, limit in zip(self.seconds, self.limits, strict=True))


def seconds(run: Callable[[], object], device: str) -> float:
    """Time of one call: CUDA events on a GPU, the wall clock elsewhere."""
    if device != 'cuda':
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1000


def forward(model: nn.Module, x: Tensor, precision: Callable[[], AbstractContextManager]) -> None:
    """A forward pass without gradients."""
    with torch.no_grad(), precision():
        model(x)


def step(model: nn.Module, x: Tensor, precision: Callable[[], AbstractContextManager]) -> None:
    """A forward and a backward pass."""
    with precision():
        loss = sum(out.float().sum() for out in model(x))
    loss.backward()
    model.zero_grad(set_to_none=True)


class Products(TorchFunctionMode):
    """Records the shapes of all matrix products and attentions: what no implementation can leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (F.linear, torch._C._nn.linear):
            x, weight, *_ = (*args, *(kwargs[name] for name in ('input', 'weight') if name in kwargs))
            outputs, inputs = weight.shape
            self.found['linear', x.numel() // inputs, inputs, outputs] += 1
        elif func in (F.conv2d, F.conv_transpose2d, torch.conv2d, torch.conv_transpose2d):
            out = func(*args, **kwargs)
            x, weight = args[0], args[1]
            groups = (args[6] if len(args) > 6 else 1) if func in (F.conv2d, torch.conv2d) else 1
            rows = out.shape[0] * out.shape[2] * out.shape[3]
            if func in (F.conv_transpose2d, torch.conv_transpose2d):
                self.found['linear', x.shape[0] * x.shape[2] * x.shape[3], x.shape[1], weight[0].numel()] += 1
            elif groups == 1:
                self.found['linear', rows, weight[0].numel(), weight.shape[0]] += 1
            return out
        elif func is F.scaled_dot_product_attention:
            mask = kwargs.get('attn_mask')
            mask = None if mask is None else mask.shape
            self.found['attention', args[0].shape, args[1].shape, mask] += 1
        elif func in (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm):
            self.found['product', args[0].shape, args[1].shape] += 1
        return func(*args, **kwargs)


class Limit:
    """The time that the matrix products and attentions of a model take alone, on shapes of its own.

    Args:
        model: Any module from an image to its maps; its forward pass is watched once.
        x: The images.
        dtype: Type that the products are computed in.
    """

    def __init__(self, model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
        with torch.no_grad(), torch.compiler.set_stance('force_eager'), Products() as products:
            model(x)
        self.runs = [(self._run(shape, x.device, dtype), count) for shape, count in products.found.items()]
        self.device = x.device.type

    @staticmethod
    def _run(shape: tuple, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
        def random(*size: int) -> Tensor:
            return torch.randn(*size, device=device, dtype=dtype)

        if shape[0] == 'linear':
            _, rows, inputs, outputs = shape
            x, weight, bias = random(rows, inputs), random(outputs, inputs), random(outputs)
            return lambda: F.linear(x, weight, bias)
        if shape[0] == 'product':
            first, second = random(*shape[1]), random(*shape[2])
            return lambda: first @ second
        _, query, key, mask = shape
        q, k, v = random(*query), random(*key), random(*key)
        mask = None if mask is None else random(*mask)
        return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def seconds(self) -> float:
        """Measure each shape once and add them up, as often as the model has them."""
        with torch.no_grad():
            return sum(count * seconds(run, self.device) for run, count in self.runs)


def measure(
    runs: dict[str, Callable[[], object]],
    limits: dict[str, Limit],
    device: str,
    rounds: int,
    progress=lambda rounds: rounds,
) -> dict[str, Times]:
    """Time several models in turn, round by round, so that noise of the machine meets all of them.

    Args:
        runs: Name to what is timed.
        limits: Name to the limit that is measured right after it; for the names that have one.
        device: ``'cpu'`` or ``'cuda'``.
        rounds: How often; one more before them is left out.
        progress: Wraps the rounds, as tqdm does.
    """
    times = {name: Times() for name in runs}
    for index in progress(range(rounds + 1)):
        for name, run in runs.items():
            taken = seconds(run, device)
            limit = limits[name].seconds() if name in limits else float('nan')
            if index:
                times[name].seconds.append(taken)
                times[name].limits.append(limit)
    return times
