import numpy as np
import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law
from native import accuracy_law, every_level, every_thread, needs, repeat_law
from torch.nn import functional as F

from stepscan.kernels.selective_scan import CHUNK
from stepscan.ops.selective_scan import BLOCK, selective_scan

BATCH, E, N = 2, 4, 3
GROUPS = {"shared": (), "grouped": (2,)}
REGIMES = {
    "mild": lambda u: u,
    "zero": lambda u: 0 * u,
    "strong": lambda u: 20 * u,
    "extreme": lambda u: 10 ** (8 * u - 4),  # 1e-4 ... 1e4
}
native = needs("selective_scan")
CPU = pytest.param("cpu", torch.float32, marks=native)
every_case = pytest.mark.parametrize(
    ("form", "dtype"), [("recurrent", torch.float64), ("blocked", torch.float64), CPU], ids=str
)
every_group = pytest.mark.parametrize("groups", GROUPS)


def make(T=BLOCK + 6, groups="shared", dtype=torch.float64, *, batch=BATCH, channels=E, states=N):
    x, dt, z = torch.randn(3, batch, T, channels, dtype=dtype)
    groups = GROUPS[groups] if isinstance(groups, str) else (groups,)
    B, C = torch.randn(2, batch, T, *groups, states, dtype=dtype)
    weights = {
        "A": -torch.rand(channels, states, dtype=dtype),
        "D": torch.randn(channels, dtype=dtype),
        "dt_bias": torch.randn(channels, dtype=dtype),
    }
    state = torch.randn(batch, channels, states, dtype=dtype)
    return (x, dt, B, C, z), weights, state, torch.rand(batch, T) < 0.05


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


every_other_form = pytest.mark.parametrize(
    ("form", "dtype"), [("blocked", torch.float64), ("blocked", torch.float32), CPU], ids=str
)


@every_group
@pytest.mark.parametrize("T", [0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 2])
@every_other_form
def test_forms_law(groups, T, form, dtype):
    inputs, weights, state, resets = make(T, groups, dtype)
    runs = (weighted(each, resets) for each in (form, "recurrent"))
    forms_law(*runs, (*inputs, *weights.values()), state)


@pytest.mark.parametrize("regime", REGIMES)
@every_other_form
def test_forms_law_in_every_regime_of_decay(regime, form, dtype):
    (x, dt, *rest), weights, state, resets = make(dtype=dtype)
    weights["A"] = -REGIMES[regime](torch.rand(E, N, dtype=dtype))
    weights["dt_bias"] = weights["dt_bias"].abs()  # steps go forward: dt > 0
    inputs = (x, dt.sigmoid(), *rest, *weights.values())
    runs = (weighted(each, resets, dt_softplus=False) for each in (form, "recurrent"))
    forms_law(*runs, inputs, state)


@pytest.mark.parametrize("form", ["recurrent", "blocked"])
@every_group
def test_gradcheck(form, groups):
    inputs, weights, state, resets = make(BLOCK + 2, groups)
    leaf = [x[:1, ..., :].clone() for x in inputs] + list(weights.values()) + [state[:1].clone()]
    run = lambda *x: weighted(form, resets[:1])(x[:-1], x[-1], None)  # noqa: E731
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in leaf], fast_mode=True)


@every_case
@every_group
def test_every_law_of_an_op(form, groups, dtype):
    inputs, weights, state, resets = make(groups=groups, dtype=dtype)
    params = [x.requires_grad_() for x in weights.values()]
    run = step(form, weights)
    for cuts in ([0], [1, BLOCK + 6], [8, BLOCK], [3, 3, 40], list(range(1, BLOCK + 6))):
        split_law(run, inputs, state, cuts, resets=resets, params=params)
    reset_law(run, inputs, state, resets, params=params)
    rows_law(run, inputs, state, resets=resets, params=params)
    causal_law(run, inputs, 40)


@every_case
@pytest.mark.parametrize("softplus", [True, False])
def test_the_equations_of_the_paper(form, softplus, dtype):
    near = 1e-10 if dtype == torch.float64 else 2e-5
    (x, dt, B, C, z), weights, state, _ = make(T=9, groups="grouped", dtype=dtype)
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
            np.testing.assert_allclose(y[b, t, e], want, rtol=near, atol=near / 10)
        np.testing.assert_allclose(last[b, e], h, rtol=near, atol=near / 10)


# Decays are exp(dt A), their logarithms here with A = -1.
DECAYS = {
    "mild": lambda n: F.logsigmoid(torch.randn(n) + 3),
    "wide": lambda n: -20 * torch.rand(n),
    "every size": lambda n: -(10 ** (8 * torch.rand(n) - 4)),
    "resets by decay": lambda n: torch.where(torch.rand(n) < 0.05, -1e4, -1e-3),
    "resets by more": lambda n: torch.where(torch.rand(n) < 0.05, -1e6, -1e-3),
    "none": torch.zeros,
}


def native_step(form, **options):
    """Everything that has a gradient is an input; None stands for what is not given."""

    def run(inputs, state, resets):
        x, dt, B, C, z, A, D, dt_bias = inputs
        named = {"A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias} | options
        return selective_scan(x, dt, **named, state=state, resets=resets, form=form)

    return run


SIZES = [  # batch, steps, channels, states, groups
    (1, 1, 1, 1, 1),
    (2, CHUNK, 16, 16, 1),
    (3, CHUNK + 1, 20, 3, 4),
    (1, 3 * CHUNK - 1, 34, 37, 2),
    (2, 2 * CHUNK + 5, 70, 8, 1),
    (1, 7, 300, 64, 1),
]
GIVEN = ["D z dt_bias", "z", "D", "dt_bias z", "dt_bias D", ""]


@native
@every_level
@every_thread
@pytest.mark.parametrize(("sizes", "given"), [*zip(SIZES, GIVEN, strict=True)], ids=str)
def test_native_form_on_poisoned_memory(level, threads, sizes, given, poisoned):
    batch, T, channels, states, groups = sizes
    inputs, weights, state, resets = make(
        T, groups, torch.float32, batch=batch, channels=channels, states=states
    )
    *inputs, z = inputs
    optional = {"z": z, "D": weights["D"], "dt_bias": weights["dt_bias"]}
    z, D, dt_bias = (x if name in given.split() else None for name, x in optional.items())
    inputs = (*inputs, z, weights["A"], D, dt_bias)
    accuracy_law(native_step, inputs, state, resets=resets)
    repeat_law(native_step, inputs, state, resets=resets)


@native
@every_level
@pytest.mark.parametrize("regime", DECAYS)
def test_native_form_in_every_regime_of_decay(level, regime, poisoned):
    """Also where dt is negative and not passed through softplus: A may have either sign."""
    (x, dt, B, C, z), weights, state, resets = make(3 * CHUNK + 3, 2, torch.float32)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    dt = sign * -DECAYS[regime](dt.numel()).view_as(dt)
    A = -sign[:, None].expand(E, N).contiguous()
    inputs = (x, dt, B, C, z, A, weights["D"], None)
    step = lambda form: native_step(form, dt_softplus=False)  # noqa: E731
    accuracy_law(step, inputs, state, resets=resets)
    accuracy_law(step, inputs, state)


@native
def test_what_lies_before_a_reset_does_not_count():
    """Not even infinities, in the value or in a gradient."""
    (x, dt, B, C, z), weights, state, _ = make(2 * CHUNK, dtype=torch.float32)
    resets = torch.zeros(BATCH, 2 * CHUNK, dtype=torch.bool)
    resets[:, CHUNK + 3] = True
    x[:, 5] = torch.inf
    leaf = [each.requires_grad_() for each in (x, dt, B, C, z)]
    y, last = step("cpu", weights)(leaf, state, resets)
    after = y[:, CHUNK + 3 :]
    gradients = torch.autograd.grad(after.sum() + last.sum(), leaf)
    assert after.isfinite().all()
    assert last.isfinite().all()
    assert all(g[:, CHUNK + 3 :].isfinite().all() for g in gradients)


@native
def test_any_strides_will_do():
    inputs, weights, state, resets = make(dtype=torch.float32, groups="grouped")
    inputs = (*inputs, *weights.values())
    strided = tuple(x.mT.contiguous().mT if x.ndim > 1 else x for x in inputs)
    assert not any(x.is_contiguous() for x in strided if x.ndim > 1)
    run = weighted("cpu", resets)
    got, want = run(strided, state.mT.contiguous().mT, None), run(inputs, state, None)
    assert all(map(torch.equal, got, want))


@native
@pytest.mark.parametrize("wanted", [0, 1])
def test_an_output_that_is_not_used_has_no_gradient(wanted):
    inputs, weights, state, resets = make(dtype=torch.float32)
    leaf = [x.requires_grad_() for x in (*inputs, *weights.values(), state)]
    got, want = (
        torch.autograd.grad(
            weighted(form, resets)(leaf[:-1], leaf[-1], None)[wanted].sum(),
            leaf,
            materialize_grads=True,
        )
        for form in ("cpu", "recurrent")
    )
    assert_near(got, want, what="gradients")


@native
@pytest.mark.plain
def test_native_form_is_a_whole_operator():
    (x, dt, B, C, z), weights, state, resets = make(T=9, groups="grouped", dtype=torch.float32)
    leaf = [t.requires_grad_() for t in (x, dt, weights["A"], B, C, weights["D"], z)]
    args = (*leaf, None, state, resets, True, True)
    torch.library.opcheck(torch.ops.stepscan.selective_scan.default, args)
    compiled = torch.compile(selective_scan, backend="eager", fullgraph=True)
    named = weights | {"B": B, "C": C, "z": z}
    assert_near(compiled(x, dt, **named), selective_scan(x, dt, **named), what="compiled")
    y, _ = selective_scan(x, dt, **named)
    (once,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        once.sum().backward()


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
    with pytest.raises(ValueError, match="use another form"):
        selective_scan(x, dt, **named, form="cpu")
    with pytest.raises(ValueError, match="Did you mean 'blocked'"):
        selective_scan(x, dt, **named, form="block")
