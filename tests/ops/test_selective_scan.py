import numpy as np
import pytest
import torch
from laws import causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.selective_scan import BLOCK, FORMS, selective_scan

BATCH, E, N = 2, 4, 3
GROUPS = {"shared": (), "grouped": (2,)}
REGIMES = {
    "mild": lambda u: u,
    "zero": lambda u: 0 * u,
    "strong": lambda u: 20 * u,
    "extreme": lambda u: 10 ** (8 * u - 4),  # 1e-4 ... 1e4
}
every_form = pytest.mark.parametrize("form", FORMS)
every_group = pytest.mark.parametrize("groups", GROUPS)


def make(T=BLOCK + 6, groups="shared", dtype=torch.float64):
    x, dt, z = torch.randn(3, BATCH, T, E, dtype=dtype)
    B, C = torch.randn(2, BATCH, T, *GROUPS[groups], N, dtype=dtype)
    weights = {
        "A": -torch.rand(E, N, dtype=dtype),
        "D": torch.randn(E, dtype=dtype),
        "dt_bias": torch.randn(E, dtype=dtype),
    }
    state = torch.randn(BATCH, E, N, dtype=dtype)
    return (x, dt, B, C, z), weights, state, torch.rand(BATCH, T) < 0.05


def step(form, weights, **options):
    """The weights are shared by all rows; where their gradients count, they come as inputs."""

    def run(inputs, state, resets):
        x, dt, B, C, z = inputs
        named = weights | options | {"B": B, "C": C, "z": z}
        return selective_scan(x, dt, **named, state=state, resets=resets, form=form)

    return run


def weighted(form, resets, **options):
    """Weights and all as inputs, for comparisons over the whole batch."""

    def run(inputs, state, _):
        *inputs, A, D, dt_bias = inputs
        weights = {"A": A, "D": D, "dt_bias": dt_bias}
        return step(form, weights, **options)(inputs, state, resets)

    return run


@every_group
@pytest.mark.parametrize("T", [0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forms_law(groups, T, dtype):
    inputs, weights, state, resets = make(T, groups, dtype)
    runs = (weighted(form, resets) for form in ("blocked", "recurrent"))
    forms_law(*runs, (*inputs, *weights.values()), state)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forms_law_in_every_regime_of_decay(regime, dtype):
    (x, dt, *rest), weights, state, resets = make(dtype=dtype)
    weights["A"] = -REGIMES[regime](torch.rand(E, N, dtype=dtype))
    weights["dt_bias"] = weights["dt_bias"].abs()  # steps go forward: dt > 0
    inputs = (x, dt.sigmoid(), *rest, *weights.values())
    runs = (weighted(form, resets, dt_softplus=False) for form in ("blocked", "recurrent"))
    forms_law(*runs, inputs, state)


@every_form
@every_group
def test_gradcheck(form, groups):
    inputs, weights, state, resets = make(BLOCK + 2, groups)
    leaf = [x[:1, ..., :].clone() for x in inputs] + list(weights.values()) + [state[:1].clone()]
    run = lambda *x: weighted(form, resets[:1])(x[:-1], x[-1], None)  # noqa: E731
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in leaf], fast_mode=True)


@every_form
@every_group
def test_every_law_of_an_op(form, groups):
    inputs, weights, state, resets = make(groups=groups)
    params = [x.requires_grad_() for x in weights.values()]
    run = step(form, weights)
    for cuts in ([0], [1, BLOCK + 6], [8, BLOCK], [3, 3, 40], list(range(1, BLOCK + 6))):
        split_law(run, inputs, state, cuts, resets=resets, params=params)
    reset_law(run, inputs, state, resets, params=params)
    rows_law(run, inputs, state, resets=resets, params=params)
    causal_law(run, inputs, 40)


@every_form
@pytest.mark.parametrize("softplus", [True, False])
def test_the_equations_of_the_paper(form, softplus):
    (x, dt, B, C, z), weights, state, _ = make(T=9, groups="grouped")
    dt = dt if softplus else dt.exp()
    named = weights | {"B": B, "C": C, "z": z, "dt_softplus": softplus, "state": state}
    y, last = selective_scan(x, dt, **named, form=form)
    A, D, bias = (w.numpy() for w in weights.values())
    for b, e in [(0, 0), (0, 1), (1, 2), (1, 3)]:
        h, g = state[b, e].numpy(), e // 2  # two groups of two channels
        for t in range(9):
            d = dt[b, t, e].item() + bias[e]
            d = np.log1p(np.exp(d)) if softplus else d
            u, gate = x[b, t, e].item(), z[b, t, e].item()
            h = np.exp(d * A[e]) * h + d * B[b, t, g].numpy() * u
            want = (h @ C[b, t, g].numpy() + D[e] * u) * gate / (1 + np.exp(-gate))
            np.testing.assert_allclose(y[b, t, e], want, rtol=1e-10)
        np.testing.assert_allclose(last[b, e], h, rtol=1e-10)


def test_half_precision_inputs_keep_a_wide_state():
    inputs, weights, *_ = make(dtype=torch.bfloat16)
    y, state = step("auto", weights)(inputs, None, None)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (x, dt, B, C, z), weights, state, _ = make(groups="grouped")
    named = weights | {"B": B, "C": C}
    with pytest.raises(ValueError, match=r"got x \(2, 70, 4\), dt \(2, 70, 3\)"):
        selective_scan(x, dt[..., :3], **named)
    odd = torch.cat([B, B[:, :, :1]], 2)
    with pytest.raises(ValueError, match=r"G a divisor of E; .* B \(2, 70, 3, 3\)"):
        selective_scan(x, dt, **named | {"B": odd, "C": odd})
    with pytest.raises(ValueError, match=r"want D \(4,\), got \(3,\)"):
        selective_scan(x, dt, **named | {"D": weights["D"][:3]})
    with pytest.raises(ValueError, match=r"want z \(2, 70, 4\), got \(2, 70, 3\)"):
        selective_scan(x, dt, **named, z=z[..., :3])
    with pytest.raises(ValueError, match=r"state: want \(2, 4, 3\), got \(2, 4\)"):
        selective_scan(x, dt, **named, state=state[..., 0])
    with pytest.raises(ValueError, match="Did you mean 'blocked'"):
        selective_scan(x, dt, **named, form="block")
