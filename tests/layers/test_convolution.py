import pytest
import torch
from laws import assert_near, live_law, reset_law, split_law
from torch import nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", None])
def test_equals_a_depthwise_conv1d_and_keeps_the_laws(bias, activation):
    layer = ShortConv(6, activation=activation, bias=bias).double()
    x, resets = torch.randn(2, 12, 6).double(), torch.rand(2, 12) < 0.2
    peer = nn.Conv1d(6, 6, 4, groups=6, padding=3, bias=bias).double()
    peer.load_state_dict({"weight": layer.weight[:, None]} | ({"bias": layer.bias} if bias else {}))
    want = peer(x.mT)[..., :12].mT
    assert_near(layer(x)[0], F.silu(want) if activation else want, what="y")
    assert torch.equal(layer(x)[0], layer(x, layer.init_state(2))[0])
    step = lambda xs, state, resets: layer(xs[0], state, resets)  # noqa: E731
    params, state = list(layer.parameters()), torch.randn(2, 3, 6).double()
    split_law(step, (x,), state, [0, 1, 2, 7], resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)
    live_law(layer, x)


def test_initial_values_are_those_of_a_depthwise_conv1d():
    layer, peer = ShortConv(4096, 4), nn.Conv1d(4096, 4096, 4, groups=4096)
    for got, want in ((layer.weight, peer.weight), (layer.bias, peer.bias)):
        assert 0.99 * 0.5 < got.abs().max() <= 0.5
        assert want.abs().max() <= 0.5
        assert abs(got.std() / want.std() - 1) < 0.05


@pytest.mark.plain
def test_errors_say_what_to_fix():
    with pytest.raises(ValueError, match="want window at least 1, got 0"):
        ShortConv(4, 0)
