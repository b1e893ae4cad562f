# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import itertools

import pytest
import torch

from mmhpvit.layers.partition import LAYOUTS, Layout, named_layout, partition, restore

SIZES = [(1, 1), (1, 5), (4, 4), (6, 9), (7, 13), (16, 8), (23, 30)]
WINDOWS, DILATIONS = [None, 1, 2, 5, 14], [1, 2, 3, 4]
CASES = [Layout(w, d) for w in WINDOWS for d in DILATIONS]


@pytest.mark.parametrize(('size', 'layout'), list(itertools.product(SIZES, CASES)))
def test_restore_undoes_partition(layout, size):
    x = torch.randn(2, *size, 3)
    groups = partition(x, layout)
    assert torch.equal(restore(groups, layout, size), x)
    assert sum(g.shape[1] * g.shape[2] for g in groups) == size[0] * size[1]


def even_side(size, layout):
    """Side of the windows, in tokens of the map: as few windows as will do, of one length but for the last."""
    steps = -(-size // layout.dilation)
    if layout.window is None:
        return steps * layout.dilation
    number = -(-steps // layout.window)
    return -(-steps // number) * layout.dilation


@pytest.mark.parametrize(
    ('size', 'layout'), list(itertools.product([(5, 7), (6, 6), (1, 4), (14, 9)], CASES))
)
def test_sequences_hold_exactly_the_tokens_of_the_layout(layout, size):
    """Same window and same phase on both axes, straight from the definition."""
    sides = [even_side(s, layout) for s in size]

    def family(token):
        return [(i // side, i % layout.dilation) for i, side in zip(token, sides, strict=True)]

    tokens = list(itertools.product(range(size[0]), range(size[1])))
    x = torch.tensor(tokens).reshape(1, *size, 2)
    sequences = [s.tolist() for g in partition(x, layout) for s in g[0]]
    for sequence in sequences:
        expected = [t for t in tokens if family(t) == family(sequence[0])]
        assert [tuple(t) for t in sequence] == expected
    assert len({tuple(s[0]) for s in sequences}) == len(sequences)


@pytest.mark.parametrize(
    ('size', 'window', 'sides'),
    [(50, 16, [13, 11]), (64, 14, [13, 12]), (84, 16, [14]), (3, 14, [3]), (21, 5, [5, 1])],
)
def test_windows_have_one_length_but_for_the_last(size, window, sides):
    groups = partition(torch.zeros(1, size, 1, 1), Layout(window))
    assert [g.shape[2] for g in groups] == sides


@pytest.mark.parametrize('name', ['grid', 'window_grid'])
@pytest.mark.parametrize(('size', 'groups'), [((8, 16), 1), ((8, 13), 2), ((9, 13), 4), ((3, 3), 1)])
def test_number_of_groups(name, size, groups):
    """One where everything divides; windows of a grid can leave three on an axis."""
    layout = named_layout(name, window=4, dilation=4)
    assert len(partition(torch.zeros(1, *size, 1), layout)) == groups
    assert len(partition(torch.zeros(1, 33, 33, 1), Layout(4, 4))) == 9


def test_names():
    layouts = {name: named_layout(name, 14, 4) for name in LAYOUTS}
    assert layouts == {
        'global': Layout(None, 1),
        'window': Layout(14, 1),
        'grid': Layout(None, 4),
        'window_grid': Layout(14, 4),
    }


def test_bad_layouts_are_refused():
    with pytest.raises(ValueError, match=r"'spiral': expected one of global, window, grid, window_grid"):
        named_layout('spiral', 2, 2)
    for layout in (dict(dilation=0), dict(window=0), dict(window=-1)):
        with pytest.raises(ValueError, match='expected positive numbers of tokens'):
            Layout(**layout)


@pytest.mark.parametrize('layout', [Layout(None, 4), Layout(2, 2), Layout(3, 1)])
def test_gradient_passes_through_both_ways(layout):
    x = torch.randn(1, 5, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: restore([g.cumsum(2) for g in partition(x, layout)], layout, (5, 6)), x
    )
