# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Resuming an iteration-based training without loading the images before."""

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
    """Resume an iteration-based training at once, with the images that come next.

    mmengine 0.10 loads, augments and drops every batch of the training so far, which takes hours late in a long
    schedule. This hook advances the sampler instead, which gives the same order of images. Only batches that workers
    have begun to load are dropped. Epoch-based trainings do not need it.

    ``tools/train.py`` adds it. For other tools: ``custom_hooks = [dict(type='SkipTrainedData')]``.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Replace the loop's iterator, of which the loop drops as many batches as it was trained on."""
        loop = runner.train_loop
        batches = getattr(loop, 'dataloader_iterator', None)
        # A second hook of this kind finds what the first one put there.
        if not isinstance(loop, IterBasedTrainLoop) or isinstance(batches, _MovedOn) or not loop.iter:
            return
        if isinstance(loop.dataloader.dataset, IterableDataset):
            return  # has no sampler to advance
        if hasattr(batches, 'skip_iter'):
            # Later versions of mmengine call that, and are fast with the samplers that they know.
            if getattr(loop, 'fast_forward_on_resume', False) or batches._resolve_sampler() is not None:
                return
            batches._ensure_iterator()
        if not hasattr(getattr(batches, '_iterator', None), '_sampler_iter'):
            print_log(
                'SkipTrainedData: unknown dataloader; mmengine loads all batches so far again',
                'current',
                logging.WARNING,
            )
            return
        skip_batches(batches, loop.iter)
        loop.dataloader_iterator = _MovedOn(batches, loop.iter)


class _MovedOn:
    """An advanced iterator: the batches that the loop still drops are None."""

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
    """Advance mmengine's endless iterator over a dataloader.

    Args:
        batches: ``IterBasedTrainLoop.dataloader_iterator``.
        count: How many batches to skip.
    """
    while count > 0:
        loader = batches._iterator
        # Workers have begun these already; a dataloader without workers has none.
        begun = getattr(loader, '_send_idx', 0) - getattr(loader, '_rcvd_idx', 0)
        skipped = sum(1 for _ in islice(loader._sampler_iter, max(0, count - begun)))
        count -= skipped
        # At the end of an epoch the iterator starts the next one when it is asked for a batch.
        for _ in range(min(count, begun or (0 if skipped else 1))):
            next(batches)
            count -= 1
