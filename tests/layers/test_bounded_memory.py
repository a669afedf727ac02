"""The bounds of a memory: what each does to the state, and the laws with each of them."""

import dataclasses

import pytest
import torch
from laws import causal_law, live_law, reset_law, rows_law, split_law, state_law

from stepscan import state as states
from stepscan.layers.bounded_memory import MemoryBounds, RecentWrites, bounded_attention
from stepscan.mixers import from_dict, to_dict
from stepscan.mixers.gla import GLAConfig
from stepscan.mixers.mamba2 import Mamba2Config
from stepscan.ops.linear_attention import linear_attention, recurrent

WIDTH, T = 16, 20
OPTIONS = (
    {"forget_scale": 3.0},
    {"state_norm": 0.5},
    {"memory_window": 1},
    {"memory_window": 6},
    {"memory_window": 50, "forget_scale": 2.0},
)
every_bound = pytest.mark.parametrize(
    "config",
    [
        pytest.param(base(**options), id=f"{base.name}-{options}")
        for base in (GLAConfig, Mamba2Config)
        for options in OPTIONS
    ],
)


def setup(config, dtype=torch.float64):
    torch.manual_seed(0)
    if config.name == "mamba2":
        config = dataclasses.replace(config, states=8, groups=2)
    mixer = config.build(WIDTH).to(dtype)
    x = torch.randn(3, T, WIDTH, dtype=dtype)
    resets = torch.rand(3, T) < 0.15
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    return step, (x,), states.detach(mixer(x)[1]), resets, list(mixer.parameters())


@every_bound
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_split_and_reset_laws(config, dtype):
    step, x, state, resets, params = setup(config, dtype)
    for cuts in ([0, 7], [3, 3, 9, T], list(range(1, T))):
        split_law(step, x, state, cuts, params=params)
        split_law(step, x, state, cuts, resets=resets, params=params)
    reset_law(step, x, state, resets, params=params)


@every_bound
def test_the_other_laws(config, tmp_path):
    step, x, state, resets, params = setup(config)
    causal_law(step, x, 9)
    rows_law(step, x, state, resets=resets, params=params)
    live_law(config.build(WIDTH), torch.randn(2, T, WIDTH))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        step, x, state, *_ = setup(config, dtype)
        state_law(step, x, state, tmp_path / "state")
        assert step(x, None, None)[0].dtype == dtype
    mixer = config.build(WIDTH).double()
    assert torch.equal(mixer(x[0].double())[0], mixer(x[0].double(), mixer.init_state(3))[0])
    assert from_dict(to_dict(config)) == config


@pytest.mark.plain
@every_bound
def test_it_compiles_whole(config):
    mixer, x, resets = config.build(WIDTH), torch.randn(2, T, WIDTH), torch.rand(2, T) < 0.2
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, None, resets)[0], mixer(x, None, resets)[0])


def drawn(dtype, *, steps=70, groups=2, channels=False, strength=0.1):
    torch.manual_seed(1)
    q, k = (torch.randn(2, steps, groups, 5, dtype=dtype) for _ in range(2))
    v = torch.randn(2, steps, 4, 3, dtype=dtype)
    decays = (2, steps, 4, 5) if channels else (2, steps, 4)
    return q, k, v, -strength * torch.rand(decays, dtype=dtype)


@pytest.mark.parametrize("window", [1, 7, 64, 70, 100])
@pytest.mark.parametrize("channels", [False, True], ids=["per head", "per channel"])
@pytest.mark.parametrize("strength", [1e-4, 0.1, 30.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_windowed_memory_is_that_of_the_last_tokens(window, channels, strength, dtype):
    """Recomputed from nothing for every token, in float64."""
    q, k, v, g = drawn(dtype, groups=4 if channels else 2, channels=channels, strength=strength)
    bounds = MemoryBounds(memory_window=window)
    y, state = bounded_attention(q, k, v, log_decay=g, bounds=bounds, state=None, resets=None)
    worst = size = 0.0
    for t in range(q.shape[1]):
        last = slice(max(0, t + 1 - window), t + 1)
        parts = (x[:, last].double() for x in (q, k, v))
        want = linear_attention(*parts, log_decay=g[:, last].double())[0][:, -1]
        worst = max(worst, (y[:, t] - want).abs().max().item())
        size = max(size, want.abs().max().item())
    assert worst < (1e-12 if dtype == torch.float64 else 1e-6) * max(size, 1)
    assert isinstance(state, RecentWrites)
    held = min(window, q.shape[1])
    assert torch.equal(state.keys[:, -held:], k[:, -held:])


def test_the_window_does_not_wear_out():
    """The published difference of two sums since the beginning does, in float32."""
    q, k, v, g = drawn(torch.float32, steps=20_000, strength=1e-6)
    k, v, w = k + 3, v + 3, 16  # all writes point the same way: the sums grow with T
    run = {"log_decay": g, "resets": None}
    y, _ = bounded_attention(q, k, v, bounds=MemoryBounds(memory_window=w), state=None, **run)
    want = linear_attention(*(x[:, -w:].double() for x in (q, k, v)), log_decay=g[:, -w:].double())
    want = want[0][:, -1]
    error = (y[:, -1] - want).abs().max() / want.abs().max()

    whole = linear_attention(q, k, v, log_decay=g)[1]
    past = linear_attention(q[:, :-w], k[:, :-w], v[:, :-w], log_decay=g[:, :-w])[1]
    difference = whole - g[:, -w:].sum(1).exp()[..., None, None] * past
    read = torch.einsum("bhk,bhkv->bhv", q[:, -1].repeat_interleave(2, 1), difference)
    worn = (read - want).abs().max() / want.abs().max()
    assert error < 1e-6
    assert worn > 1e-4


def test_the_norm_is_bounded_after_every_step():
    q, k, v, g = drawn(torch.float64)
    bounds = MemoryBounds(state_norm=2.0)
    sizes, state = [], None
    for t in range(q.shape[1]):
        parts = (x[:, t : t + 1] for x in (q, k, v))
        _, state = bounded_attention(
            *parts, log_decay=g[:, t : t + 1], bounds=bounds, state=state, resets=None
        )
        sizes.append(state.norm(dim=(2, 3)))
    free = linear_attention(q, k, v, log_decay=g)[1].norm(dim=(2, 3))
    assert torch.stack(sizes).max() < 2 + 1e-12 < free.min()


def test_bounds_that_do_not_bind_change_nothing():
    q, k, v, g = drawn(torch.float64)
    zeros = torch.zeros(2, 4, 5, 3, dtype=torch.float64)
    resets = torch.zeros(2, 70, dtype=torch.bool)
    want, _ = recurrent(q, k, v, log_decay=g[..., None], state=zeros, resets=resets)
    for bounds in (MemoryBounds(state_norm=1e9), MemoryBounds(memory_window=70), MemoryBounds()):
        y, _ = bounded_attention(q, k, v, log_decay=g, bounds=bounds, state=None, resets=resets)
        torch.testing.assert_close(y, want, atol=1e-12, rtol=0)


def test_the_scale_multiplies_every_log_decay():
    """A GLA whose decays are scaled by 4 is one whose root is 4 instead of 16."""
    torch.manual_seed(0)
    scaled = GLAConfig(forget_scale=4).build(WIDTH)
    x = torch.randn(2, T, WIDTH)
    plain = GLAConfig(decay_power=4).build(WIDTH)
    plain.load_state_dict(scaled.state_dict())
    torch.testing.assert_close(scaled(x)[0], plain(x)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forget_scale": 0.0}, "forget_scale above 0"),
        ({"state_norm": -1.0}, "state_norm above 0"),
        ({"memory_window": 0}, "memory_window at least 1"),
        ({"memory_window": 4, "state_norm": 1.0}, "got both"),
    ],
)
def test_bounds_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GLAConfig(**options)
