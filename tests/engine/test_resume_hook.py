# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Iteration-based training goes on with the images that come next, and does not load those before them."""

import multiprocessing
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from mmhpvit import SkipTrainedData
from mmhpvit.engine.resume_hook import skip_batches


class Numbers(Dataset):
    """Gives numbers, and counts in all processes how many it has given."""

    def __init__(self, length: int = 23) -> None:
        self.length = length
        self.given = multiprocessing.Value('i', 0)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        with self.given.get_lock():
            self.given.value += 1
        return torch.tensor(float(index))


class PairsOfAKind(BatchSampler):
    """As mmdet's batches of one aspect ratio: how many numbers a batch takes depends on them."""

    def __iter__(self):
        kept = {0: [], 1: []}
        for index in self.sampler:
            kept[index % 2].append(index)
            if len(kept[index % 2]) == 2:
                yield kept[index % 2]
                kept[index % 2] = []


def loader(sampler: type, batches: type, workers: int, persistent: bool = False) -> DataLoader:
    numbers = Numbers()
    return DataLoader(
        numbers,
        batch_sampler=batches(sampler(numbers, seed=3), 2, False),
        num_workers=workers,
        persistent_workers=persistent,
    )


# Later versions skip by themselves, and have nothing to take apart.
older = pytest.mark.skipif(
    hasattr(_InfiniteDataloaderIterator, 'skip_iter'),
    reason='mmengine moves on in the order of the images itself',
)


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda _: None)


@older
@pytest.mark.parametrize('count', [0, 1, 3, 11, 12, 13, 60])
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(
    ('sampler', 'batches'),
    [(InfiniteSampler, BatchSampler), (InfiniteSampler, PairsOfAKind), (DefaultSampler, BatchSampler)],
)
def test_skipped_batches_are_those_that_would_have_come(sampler, batches, workers, count, no_waiting):
    whole = [b.tolist() for b in islice(_InfiniteDataloaderIterator(loader(sampler, batches, 0)), count + 30)]
    rest = _InfiniteDataloaderIterator(loader(sampler, batches, workers))
    skip_batches(rest, count)
    assert [b.tolist() for b in islice(rest, 30)] == whole[count:]


@older
def test_workers_that_stay_are_skipped_too(no_waiting):
    whole = _InfiniteDataloaderIterator(loader(DefaultSampler, BatchSampler, 0))
    whole = [b.tolist() for b in islice(whole, 60)]
    rest = _InfiniteDataloaderIterator(loader(DefaultSampler, BatchSampler, 2, persistent=True))
    skip_batches(rest, 31)
    assert [b.tolist() for b in islice(rest, 29)] == whole[31:]


@pytest.mark.parametrize('known', [True, False])
def test_later_loops_that_do_not_know_the_sampler_are_helped(known, no_waiting):
    """As mmengine's community fork, whose loop asks its batches to skip."""

    class Later(_InfiniteDataloaderIterator):
        def skip_iter(self, count: int) -> None:
            raise AssertionError('the hook should have done it')

        def _resolve_sampler(self) -> object | None:
            return self._dataloader.sampler if known else None

        def _ensure_iterator(self) -> None:
            self._iterator = iter(self._dataloader)

    data = loader(InfiniteSampler, PairsOfAKind, 0)
    runner = SimpleNamespace(train_loop=IterBasedTrainLoop.__new__(IterBasedTrainLoop))
    batches = Later(data)
    vars(runner.train_loop).update(_iter=5, dataloader=data, dataloader_iterator=batches)
    SkipTrainedData().before_train(runner)
    found = runner.train_loop.dataloader_iterator
    assert (found is batches) == known
    if not known:
        found.skip_iter(5)
        assert next(found).numel() == 2
        assert data.dataset.given.value == 2
    # A loop that is told to leave the order as it is needs nothing.
    vars(runner.train_loop).update(dataloader_iterator=batches, fast_forward_on_resume=True)
    SkipTrainedData().before_train(runner)
    assert runner.train_loop.dataloader_iterator is batches


def test_data_without_an_order_is_left_to_mmengine():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(range(100))

    data = DataLoader(Endless(), batch_size=2)
    runner = SimpleNamespace(train_loop=IterBasedTrainLoop.__new__(IterBasedTrainLoop))
    batches = _InfiniteDataloaderIterator(data)
    vars(runner.train_loop).update(_iter=5, dataloader=data, dataloader_iterator=batches)
    SkipTrainedData().before_train(runner)
    assert runner.train_loop.dataloader_iterator is batches


class Seen(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def train_step(self, data: torch.Tensor, optim_wrapper: OptimWrapper) -> dict:
        losses = self(data)
        optim_wrapper.update_params(losses['loss'])
        return losses

    def forward(self, inputs: torch.Tensor) -> dict:
        self.seen.append(inputs.tolist())
        return dict(loss=(self.weight * inputs).mean())


def trained(tmp_path, until: int, hooks: list, **options) -> tuple[Seen, Numbers]:
    data = loader(InfiniteSampler, BatchSampler, 0)
    runner = Runner(
        model=Seen(),
        work_dir=str(tmp_path),
        train_dataloader=data,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=until),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5)),
        randomness=dict(seed=0),
        experiment_name=f'{tmp_path.name}-{until}-{len(hooks)}-{bool(options)}',
        **options,
    )
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner.model, data.dataset


def test_resumed_training_sees_the_next_images_and_loads_no_others(tmp_path):
    whole, _ = trained(tmp_path / 'whole', 25, [])
    first, _ = trained(tmp_path / 'parts', 15, [])
    assert first.seen == whole.seen[:15]
    # As if two configs had asked for it.
    hooks = [SkipTrainedData(), SkipTrainedData()]
    options = dict(resume=True, load_from=str(tmp_path / 'parts/iter_15.pth'))
    rest, numbers = trained(tmp_path / 'parts', 25, hooks, **options)
    assert rest.seen == whole.seen[15:]
    skips = hasattr(_InfiniteDataloaderIterator, 'skip_iter')
    assert numbers.given.value == 20 or (skips and numbers.given.value <= 22)
    torch.testing.assert_close(rest.weight, whole.weight)
    # Without it all is loaded again, unless mmengine does better.
    rest, numbers = trained(tmp_path / 'parts', 25, [], **options)
    assert rest.seen == whole.seen[15:]
    assert numbers.given.value == 50 or skips
