# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Resuming of iteration-based training without loading again what it has been trained on."""

import logging
from collections.abc import Iterator
from itertools import islice

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import IterableDataset


@HOOKS.register_module()
class SkipTrainedData(Hook):
    """Let a resumed iteration-based training begin at once, with the images that come next.

    mmengine 0.10 loads and augments every batch that the training has had and throws it away, which after most of a
    long schedule takes hours. This moves on in the order of the images alone, which is the same order; only the batches
    that the workers had begun to load are thrown away. Epoch-based training needs nothing of the kind.

    ``tools/train.py`` has it by itself; in a config for other tools it is
    ``custom_hooks = [dict(type='SkipTrainedData')]``.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Take the place of the loop's batches, of which the loop throws away as many as were trained."""
        loop = runner.train_loop
        batches = getattr(loop, 'dataloader_iterator', None)
        # A second hook of this kind finds what the first has left.
        if not isinstance(loop, IterBasedTrainLoop) or isinstance(batches, _MovedOn) or not loop.iter:
            return
        if isinstance(loop.dataloader.dataset, IterableDataset):
            return  # has no order of its own to move on in
        if hasattr(batches, 'skip_iter'):
            # Later versions of the loop ask for that, which is fast for the samplers that they know.
            if getattr(loop, 'fast_forward_on_resume', False) or batches._resolve_sampler() is not None:
                return
            batches._ensure_iterator()
        if not hasattr(getattr(batches, '_iterator', None), '_sampler_iter'):
            print_log('SkipTrainedData: unknown loader, which loads all again', 'current', logging.WARNING)
            return
        skip_batches(batches, loop.iter)
        loop.dataloader_iterator = _MovedOn(batches, loop.iter)


class _MovedOn:
    """Batches after some, which the loop is yet to throw away: it gets nothing in their place."""

    def __init__(self, batches: Iterator, passed: int) -> None:
        self.batches, self.passed = batches, passed

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> object:
        if self.passed:
            self.passed -= 1
            return None
        return next(self.batches)

    def skip_iter(self, count: int) -> None:
        self.passed -= count


def skip_batches(batches: Iterator, count: int) -> None:
    """Move an endless iterator of mmengine's over a torch loader on by a number of batches.

    Args:
        batches: What ``IterBasedTrainLoop`` has as ``dataloader_iterator``.
        count: How many batches to leave out.
    """
    while count > 0:
        loader = batches._iterator
        # Workers have been given these already; a loader without workers has none.
        begun = getattr(loader, '_send_idx', 0) - getattr(loader, '_rcvd_idx', 0)
        skipped = sum(1 for _ in islice(loader._sampler_iter, max(0, count - begun)))
        count -= skipped
        # At the end of an epoch the iterator begins the next when it is asked for a batch.
        for _ in range(min(count, begun or (0 if skipped else 1))):
            next(batches)
            count -= 1
