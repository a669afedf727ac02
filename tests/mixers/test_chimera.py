"""Chimera: its equations, what is left without paths across the variates, lead and lag, seasons."""

import pytest
import torch
from laws import assert_near
from torch import nn
from torch.nn import functional as F

from stepscan.mixers import MIXERS
from stepscan.ops.selective_scan import selective_scan

WIDTH, V, T, N = 12, 3, 9, 2


def built(**options):
    mixer = MIXERS["chimera"](variates=V, states=N, **options).build(WIDTH).double()
    return mixer, torch.randn(2, T, WIDTH).double()


def double_loop(head, u, marked, ways):
    """Over times and variates, one number after another, by the words of the docstring."""
    B, T, V, E = u.shape
    B1, B2, C1, C2, dt, dv = head.select(marked).split(head.sizes, -1)
    dt, dv = F.softplus(dt + head.step_bias[0]), F.softplus(dv + head.step_bias[1])
    A, a = -head.log_rate.exp(), head.coupling.tanh()
    y = torch.zeros_like(u)
    for way in range(ways):
        order = range(V)[:: 1 - 2 * way]
        dtype = torch.complex128 if head.turns else torch.float64
        h1, h2 = (torch.zeros(B, V, E, N, dtype=dtype) for _ in "12")
        for t in range(T):
            new1, new2 = h1.clone(), h2.clone()
            for place, v in enumerate(order):
                x = u[:, t, v, :, None]
                time, step = dt[:, t, v, :, None], dv[:, t, v, :, None]
                kept = (time * A[0, way]).exp()
                turned = kept
                if head.turns:
                    turned = kept * (1j * time * head.frequency[way]).exp()
                late = (1 - kept) * a[0, way]
                first = turned * h1[:, v] + late * h2[:, v] + time * x * B1[:, t, v, None]
                second = step * x * B2[:, t, v, None]
                if place and ways == 2:
                    near = order[place - 1]
                    across = (step * A[1, way]).exp()
                    second = second + across * new2[:, near]
                    second = second + (1 - across) * a[1, way] * new1[:, near]
                new1[:, v], new2[:, v] = first, second + 0 * first
                read = first * C1[:, t, v, None] + second * C2[:, t, v, None]
                y[:, t, v] += (read.real if head.turns else read).sum(-1)
            h1, h2 = new1, new2
    return y


@pytest.mark.parametrize("cross", [True, False])
def test_a_double_loop_over_times_and_variates(cross):
    mixer, x = built(cross=cross)
    u, gate = mixer.inputs(x.unflatten(2, (V, -1))).chunk(2, -1)
    marked = u + mixer.place
    y = sum(double_loop(h, u, marked, 1 + cross) for h in (mixer.trend, mixer.seasonal))
    want = mixer.out((y + mixer.D * u) * F.silu(gate)).flatten(2)
    assert_near(mixer(x)[0], want, what="chimera")


def test_without_paths_across_variates_the_trend_is_mamba_s_scan_of_each():
    mixer, x = built(cross=False)
    head = mixer.trend
    nn.init.zeros_(head.coupling)  # nor from h2 to h1: what is left of h2 is a gain of u
    u = mixer.inputs(x.unflatten(2, (V, -1))).chunk(2, -1)[0]
    marked = u + mixer.place
    y, _ = head(u, marked, mixer.init_state(2).trend.double(), None)
    for v in range(V):
        B1, B2, C1, C2, dt, dv = head.select(marked[:, :, v]).split(head.sizes, -1)
        A = -head.log_rate[0, 0].exp()
        own, _ = selective_scan(u[:, :, v], dt, A=A, B=B1, C=C1, dt_bias=head.step_bias[0])
        gain = F.softplus(dv + head.step_bias[1]) * (B2 * C2).sum(-1, True)
        assert_near(y[:, :, v], own + gain * u[:, :, v], what=f"variate {v}")


@pytest.mark.parametrize("cross", [True, False])
def test_what_a_variate_sees_of_the_others(cross):
    mixer, x = built(cross=cross)
    J = torch.autograd.functional.jacobian(lambda x: mixer(x)[0][0], x[:1])[:, :, 0]
    J = J.unflatten(1, (V, -1)).unflatten(-1, (V, -1)).abs().sum((2, 5)) > 0  # [t v s w]
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    for v in range(V):
        for w in range(V):
            want = causal if cross or v == w else torch.zeros_like(causal)
            assert torch.equal(J[:, v, :, w], want), (v, w)


def test_no_state_grows_however_strong_the_coupling():
    mixer, _ = built()
    for head in (mixer.trend, mixer.seasonal):
        nn.init.constant_(head.coupling, 100.0)
    x = torch.randn(1, 3000, WIDTH).double()
    early, late = (mixer(x[:, :n])[1] for n in (300, 3000))
    for a, b in zip(early, late, strict=True):
        assert b.abs().max() < 5 * a.abs().max()


@pytest.mark.plain
def test_configs_that_do_not_fit():
    for options, message in (
        ({"variates": 5}, "variates=5 must divide width=16"),
        ({"states": 0}, "states=0"),
        ({"expansion": 0.01}, "inner width 0"),
    ):
        with pytest.raises(ValueError, match=message):
            MIXERS["chimera"](**options).build(16)


class Forecaster(nn.Module):
    """One or two layers; every variate is embedded and read out on its own, by the same maps."""

    def __init__(self, variates, features, layers, **options):
        super().__init__()
        self.embed = nn.Linear(1, features)
        width = variates * features
        config = MIXERS["chimera"](variates=variates, **options)
        self.mixers = nn.ModuleList(config.build(width) for _ in range(layers))
        self.read = nn.Linear(features, 1)

    def forward(self, x):
        y = self.embed(x[..., None])
        for mixer in self.mixers:
            flat = F.rms_norm(y, y.shape[-1:]).flatten(2)
            y = y + mixer(flat)[0].view_as(y)
        return self.read(y)[..., 0]


def fit(model, draw, *, steps, seed, rate=1e-2):
    """Mean squared error of the next value, past the first tokens; the target says of which."""
    rng = torch.Generator().manual_seed(seed + 100)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for _ in range(steps):
        x, target = draw(16, rng)
        loss = (model(x) - target)[:, 24:].square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


LAG = 7


def lead_and_lag(count, rng, T=64):
    """Variate 1 goes its own way; variates 0 and 2 follow it 7 steps later, with noise."""
    drive = torch.randn(count, T + 1 + LAG, generator=rng)
    for t in range(1, T + 1 + LAG):  # smooth, so that the past of a follower says something too
        drive[:, t] = 0.7 * drive[:, t - 1] + 0.7 * drive[:, t]
    noise = 0.2 * torch.randn(count, T + 1, 2, generator=rng)
    late = drive[:, : T + 1]
    series = torch.stack([late + noise[..., 0], drive[:, LAG:], late + noise[..., 1]], -1)
    return series[:, :-1], series[:, 1:]


@pytest.mark.slow
def test_a_variate_that_leads_helps_those_that_follow():
    error = {}
    for cross in (True, False):
        torch.manual_seed(0)
        model = fit(Forecaster(3, 8, 2, cross=cross), lead_and_lag, steps=300, seed=0)
        with torch.no_grad():
            x, target = lead_and_lag(256, torch.Generator().manual_seed(7))
            gap = (model(x) - target)[:, 24:, [0, 2]].square().mean().item()
        error[cross] = gap
    assert error[True] <= 0.6 * error[False], error


PERIOD = 12


def season(count, rng, T=96):
    """A pulse train of period 12 of random shape and phase, in noise; the next value is asked."""
    shape = torch.randn(count, PERIOD, generator=rng)
    whole = shape.repeat(1, T // PERIOD + 2)[:, : T + 1, None]
    noise = 0.5 * torch.randn(whole.shape, generator=rng)
    return (whole + noise)[:, :-1], whole[:, 1:]


def kernel(model, draw, lags):
    """How the seasonal head answers: d y_t / d x_{t-l} through it alone, in the mean over data."""
    nn.init.zeros_(model.mixers[0].trend.select.weight)  # nothing is written, nothing is read
    x, _ = draw(64, torch.Generator().manual_seed(7))
    (back,) = torch.autograd.grad(model(x.requires_grad_())[:, -1].sum(), x)
    return back.mean(0).flatten().flip(0)[:lags].abs()


@pytest.mark.slow
def test_the_kernel_of_the_seasonal_head_peaks_at_the_period():
    torch.manual_seed(0)
    model = Forecaster(1, 16, 1, states=8, cross=False)
    model = fit(model, season, steps=300, seed=0)
    found = kernel(model, season, 2 * PERIOD - 3)  # before the second period
    shortest = 3  # the token itself goes past the head as well
    lag = found[shortest:].argmax().item() + shortest + 1  # from the token to what is asked
    assert lag in (PERIOD - 1, PERIOD, PERIOD + 1), found
