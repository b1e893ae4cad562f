# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
import pytest
import torch

from mmhpvit.layers.pooling import build_pooling

SIZES = [(4, 6), (5, 6), (4, 7), (5, 5), (1, 1), (1, 4)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', ['conv', 'avg'])
def test_pooling_starts_as_the_average_of_the_tokens_of_each_cell(kind, size):
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    out = build_pooling(kind, 8).double()(x)
    h, w = -(-size[0] // 2), -(-size[1] // 2)
    assert out.shape == (2, h, w, 8)
    for i in range(h):
        for j in range(w):
            cell = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(dim=(1, 2))
            torch.testing.assert_close(out[:, i, j], cell, rtol=0, atol=1e-14)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('index', [0, 1, 2])
def test_picking_starts_as_one_token_of_each_cell(index, size):
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    out = build_pooling('pick', 8, index).double()(x)
    rows, columns = ([min(2 * i + index % 2, side - 1) for i in range(-(-side // 2))] for side in size)
    assert torch.equal(out, x[:, rows][:, :, columns])


def test_convolution_is_trained_and_average_has_nothing_to_train():
    for kind in ('conv', 'pick'):
        conv = build_pooling(kind, 4)
        conv(torch.randn(1, 3, 3, 4)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in conv.parameters())
    assert list(build_pooling('avg', 4).parameters()) == []


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match=r"'max'.*conv, pick, avg"):
        build_pooling('max', 4)
