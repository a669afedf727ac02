import pytest
import torch
from laws import assert_near, reset_law, split_law
from torch import nn

from stepscan.mixers import MIXERS

WIDTH = 16
MODULES = {"lstm": nn.LSTM, "gru": nn.GRU}
every_name = pytest.mark.parametrize("name", MODULES)


@every_name
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_agrees_with_the_module_of_torch(name, depth, bias, dtype):
    module = MODULES[name](WIDTH, WIDTH, depth, bias=bias, batch_first=True).to(dtype)
    mixer = MIXERS[name](depth=depth).build(WIDTH).to(dtype)
    mixer.load_torch(module)
    x = torch.randn(3, 40, WIDTH, dtype=dtype)
    want, last = module(x)
    y, state = mixer(x)
    last = last if name == "lstm" else (last,)
    for got, expected in zip((y, *state), (want, *(t.transpose(0, 1) for t in last)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    again, _ = module(x, tuple(last) if name == "lstm" else last[0])
    torch.testing.assert_close(mixer(x, state)[0], again, atol=1e-6, rtol=0)


@every_name
def test_starts_as_the_module_of_torch(name):
    torch.manual_seed(1)
    mixer = MIXERS[name]().build(WIDTH)
    torch.manual_seed(1)
    want = MODULES[name](WIDTH, WIDTH).parameters()
    assert all(map(torch.equal, mixer.parameters(), want))


@every_name
@pytest.mark.parametrize("options", [{"depth": 2}, {"expansion": 1.5}], ids=str)
def test_laws_of_deep_and_wide_cells(name, options):
    mixer, x = MIXERS[name](**options).build(4).double(), torch.randn(2, 20, 4).double()
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    resets, params = torch.rand(2, 20) < 0.15, list(mixer.parameters())
    split_law(step, (x,), mixer.init_state(2), [0, 1, 9], resets=resets, params=params)
    reset_law(step, (x,), mixer.init_state(2), resets, params=params)


@every_name
def test_a_wider_cell_ends_in_an_output_map(name):
    mixer, x = MIXERS[name](expansion=2.0).build(4).double(), torch.randn(2, 7, 4).double()
    module = MODULES[name](4, 8, batch_first=True).double()
    mixer.load_torch(module)
    assert_near(mixer(x)[0], module(x)[0] @ mixer.out.weight.mT, what="outputs")


@pytest.mark.plain
@every_name
def test_errors_say_what_to_fix(name):
    config, module = MIXERS[name], MODULES[name]
    mixer = config().build(WIDTH)
    with pytest.raises(ValueError, match=rf"\('{name.upper()}', 16, 16, 1\), got .* 16, 8, 1\)"):
        mixer.load_torch(module(16, 8))
    with pytest.raises(ValueError, match="two directions or a projection"):
        mixer.load_torch(module(16, 16, bidirectional=True))
    with pytest.raises(ValueError, match=r"got \('RNN_TANH', 16, 16, 1\)"):
        mixer.load_torch(nn.RNN(16, 16))
    with pytest.raises(ValueError, match="leaves a hidden state"):
        config(expansion=0.0).build(WIDTH)
    with pytest.raises(ValueError, match="depth=0"):
        config(depth=0).build(WIDTH)
