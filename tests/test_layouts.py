# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import itertools

import pytest
import torch

from mmhpvit.layouts import LAYOUTS, partition, restore

SIZES = [(1, 1), (1, 5), (4, 4), (6, 9), (7, 13), (16, 8)]
PERIODS = [1, 2, 3, 4, 14]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('size', 'period'), list(itertools.product(SIZES, PERIODS)))
def test_restore_undoes_partition(layout, size, period):
    x = torch.randn(2, *size, 3)
    groups = partition(x, layout, period)
    assert torch.equal(restore(groups, layout, size, period), x)
    assert sum(g.shape[1] * g.shape[2] for g in groups) == size[0] * size[1]


def _same_sequence(layout, period, a, b):
    """Whether tokens a and b, (y, x) each, belong together; straight from the layouts' definition."""
    if layout == 'global':
        return True
    if layout == 'window':
        return all(i // period == j // period for i, j in zip(a, b, strict=True))
    return all(i % period == j % period for i, j in zip(a, b, strict=True))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('size', 'period'), list(itertools.product([(5, 7), (6, 6), (1, 4)], [1, 2, 3])))
def test_sequences_hold_exactly_the_tokens_of_the_layout(layout, size, period):
    tokens = list(itertools.product(range(size[0]), range(size[1])))
    x = torch.tensor(tokens).reshape(1, *size, 2)
    sequences = [s.tolist() for g in partition(x, layout, period) for s in g[0]]
    for sequence in sequences:
        first = tuple(sequence[0])
        expected = [t for t in tokens if _same_sequence(layout, period, first, t)]
        assert [tuple(t) for t in sequence] == expected
    assert len({tuple(s[0]) for s in sequences}) == len(sequences)


@pytest.mark.parametrize('layout', ['window', 'grid'])
@pytest.mark.parametrize(('size', 'groups'), [((8, 12), 1), ((8, 13), 2), ((9, 13), 4), ((3, 3), 1)])
def test_number_of_groups(layout, size, groups):
    assert len(partition(torch.zeros(1, *size, 1), layout, 4)) == groups


@pytest.mark.parametrize(('layout', 'period'), [('spiral', 2), ('grid', 0), ('window', -1)])
def test_bad_layout_is_refused(layout, period):
    with pytest.raises(ValueError, match=layout):
        partition(torch.zeros(1, 4, 4, 1), layout, period)
    with pytest.raises(ValueError, match=layout):
        restore([torch.zeros(1, 1, 16, 1)], layout, (4, 4), period)


def test_gradient_passes_through_both_ways():
    x = torch.randn(1, 5, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: restore([g.cumsum(2) for g in partition(x, 'grid', 4)], 'grid', (5, 6), 4), x
    )
