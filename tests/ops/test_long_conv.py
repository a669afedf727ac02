import pytest
import torch
from laws import (
    assert_agree,
    assert_near,
    causal_law,
    forms_law,
    outcome,
    reset_law,
    rows_law,
    split_law,
)

from stepscan.ops import long_conv as long_conv_op
from stepscan.ops import ssm_conv as ssm_conv_op
from stepscan.ops.long_conv import long_conv
from stepscan.ops.ssm_conv import ssm_conv

B, D, N = 2, 3, 4
DTYPES = [torch.float64, torch.float32]
REGIMES = {
    "mild": lambda u: -u,
    "zero": lambda u: 0 * u,
    "strong": lambda u: -20 * u,
    "extreme": lambda u: -(10 ** (8 * u - 4)),  # -1e-4 ... -1e4
}
every_form = pytest.mark.parametrize("form", long_conv_op.FORMS)
every_ssm_form = pytest.mark.parametrize("form", ssm_conv_op.FORMS)
every_cut = pytest.mark.parametrize(
    "cuts", [[0], [1, 70], [32, 64], [3, 3, 40], list(range(1, 70))], ids=str
)
marked = pytest.mark.parametrize("marked", [False, True], ids=["", "resets"])


def make(T=70, L=40, dtype=torch.float64):
    u, kernel = torch.randn(B, T, D, dtype=dtype), torch.randn(D, L, dtype=dtype)
    return u, kernel.requires_grad_(), torch.randn(B, L - 1, D, dtype=dtype)


def step(form, kernel):
    return lambda xs, state, resets: long_conv(xs[0], kernel, state=state, resets=resets, form=form)


def some_resets(T, marked):
    return torch.rand(B, T) < 0.05 if marked else None


@pytest.mark.parametrize("form", ["shifted", "blocked", "fft"])
@pytest.mark.parametrize(
    ("T", "L"), [(1, 1), (1, 9), (7, 40), (70, 1), (70, 40), (64, 65), (150, 200)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@marked
def test_long_conv_forms_agree(form, T, L, dtype, marked):
    u, kernel, state = make(T, L, dtype)
    run = lambda form: lambda xs, s: step(form, kernel)(xs, s, resets)  # noqa: E731
    resets = some_resets(T, marked)
    got, want = (outcome(run(f), (u,), state, [kernel]) for f in (form, "recurrent"))
    assert_agree(got, want, what=form)


@every_form
@every_cut
@marked
def test_long_conv_split_law(form, cuts, marked):
    u, kernel, state = make()
    resets = some_resets(70, marked)
    split_law(step(form, kernel), (u,), state, cuts, resets=resets, params=[kernel])


@every_form
def test_long_conv_reset_and_rows_laws(form):
    u, kernel, state = make()
    resets = some_resets(70, True)
    reset_law(step(form, kernel), (u,), state, resets, params=[kernel])
    rows_law(step(form, kernel), (u,), state, resets=resets, params=[kernel])
    rows_law(step(form, kernel), (u,), state, params=[kernel])


@pytest.mark.parametrize("form", ["recurrent", "shifted", "blocked"])
def test_long_conv_is_causal(form):
    u, kernel, _ = make()
    causal_law(step(form, kernel), (u,), 40)
    u, kernel, _ = make(T=150, L=140)
    causal_law(step(form, kernel), (u,), 130)


def spectral_steps():
    u, kernel, _ = make()
    yield step("fft", kernel), u
    system, _ = make_system()
    yield ssm_step("fft", system), u


@pytest.mark.parametrize("case", [0, 1], ids=["long_conv", "ssm_conv"])
def test_spectra_are_causal_up_to_rounding(case):
    run, u = list(spectral_steps())[case]
    u, other = u.requires_grad_(), torch.cat([u[:, :40], torch.randn_like(u[:, 40:])], 1)
    y, changed = (run((x,), None, None)[0] for x in (u, other.detach()))
    assert_near(changed[:, :40], y[:, :40], what="output saw the future")
    (back,) = torch.autograd.grad(y[:, :40].sum(), u)
    assert_near(back[:, 40:], torch.zeros_like(back[:, 40:]), what="gradient saw the future")
    assert back[:, 39].abs().min() > 0


@every_form
@marked
def test_long_conv_gradcheck(form, marked):
    u, kernel, state = make(T=9, L=5)
    resets = torch.zeros(1, 9, dtype=torch.bool).index_fill_(1, torch.tensor([4]), marked)
    leaf = [u[:1].requires_grad_(), kernel, state[:1].requires_grad_()]
    run = lambda u, kernel, s: long_conv(  # noqa: E731
        u, kernel, state=s, resets=resets if marked else None, form=form
    )
    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


# A diagonal system -------------------------------------------------------------------------------


def make_system(regime="mild", dtype=torch.float64):
    decay = REGIMES[regime](torch.rand(D, N, dtype=dtype))
    log_a = torch.complex(decay, torch.randn(D, N, dtype=dtype))
    system = {"log_a": log_a} | {name: torch.randn_like(log_a) for name in ("b", "c")}
    state = torch.randn(B, D, N, dtype=log_a.dtype)
    return {name: x.requires_grad_() for name, x in system.items()}, state


def ssm_step(form, system):
    return lambda xs, state, resets: ssm_conv(
        xs[0], **system, state=state, resets=resets, form=form
    )


def assert_ssm_forms_agree(form, T, dtype, marked, regime="mild"):
    system, state = make_system(regime, dtype)
    u, resets = torch.randn(B, T, D, dtype=dtype), some_resets(T, marked)
    forms_law(ssm_step(form, system), ssm_step("recurrent", system), (u,), state, resets=resets)
    run = lambda form: lambda xs, s: ssm_step(form, system)(xs, s, resets)  # noqa: E731
    got, want = (outcome(run(f), (u,), state, system.values()) for f in (form, "recurrent"))
    assert_agree(got, want, what=f"{form} with parameters")


@pytest.mark.parametrize("form", ["chunked", "fft"])
@pytest.mark.parametrize("T", [0, 1, 7, 31, 32, 33, 64, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@marked
def test_ssm_conv_forms_agree(form, T, dtype, marked):
    assert_ssm_forms_agree(form, T, dtype, marked)


@pytest.mark.parametrize("form", ["chunked", "fft"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@marked
def test_ssm_conv_forms_agree_in_every_regime_of_decay(form, regime, dtype, marked):
    assert_ssm_forms_agree(form, 70, dtype, marked, regime)


@every_ssm_form
@every_cut
@marked
def test_ssm_conv_split_law(form, cuts, marked):
    (system, state), u, resets = make_system(), make()[0], some_resets(70, marked)
    split_law(ssm_step(form, system), (u,), state, cuts, resets=resets, params=system.values())


@every_ssm_form
def test_ssm_conv_reset_and_rows_laws(form):
    (system, state), u, resets = make_system(), make()[0], some_resets(70, True)
    params = list(system.values())
    reset_law(ssm_step(form, system), (u,), state, resets, params=params)
    rows_law(ssm_step(form, system), (u,), state, resets=resets, params=params)
    rows_law(ssm_step(form, system), (u,), state, params=params)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_ssm_conv_is_causal(form):
    system, _ = make_system()
    causal_law(ssm_step(form, system), (make()[0],), 40)


@every_ssm_form
@marked
def test_ssm_conv_gradcheck(form, marked):
    system, state = make_system()
    leaf = [torch.randn(1, 35, D, dtype=torch.float64, requires_grad=True), *system.values()]
    leaf = [*leaf, state[:1].requires_grad_()]
    resets = torch.zeros(1, 35, dtype=torch.bool).index_fill_(1, torch.tensor([9, 33]), marked)
    resets = resets if marked else None

    def run(u, log_a, b, c, state):
        system = {"log_a": log_a, "b": b, "c": c}
        return ssm_conv(u, **system, state=state, resets=resets, form=form)

    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


def test_half_precision_inputs_keep_a_wide_state():
    system, _ = make_system(dtype=torch.float32)
    u, kernel, _ = make(dtype=torch.float32)
    y, state = ssm_conv(u.bfloat16(), **system)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.complex64)
    y, state = long_conv(u.bfloat16(), kernel.bfloat16())
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    u, kernel, state = make()
    system, _ = make_system()
    with pytest.raises(ValueError, match=r"got u \(2, 70, 3\), kernel \(2, 40\)"):
        long_conv(u, kernel[:2])
    with pytest.raises(ValueError, match=r"state: want \(2, 39, 3\), got \(2, 38, 3\)"):
        long_conv(u, kernel, state=state[:, 1:])
    with pytest.raises(ValueError, match="Did you mean 'fft'"):
        long_conv(u, kernel, form="ftt")
    with pytest.raises(ValueError, match=r"b \(3, 3\)"):
        ssm_conv(u, **system | {"b": system["b"][:, 1:]})
    with pytest.raises(ValueError, match=r"resets: want bool \(2, 70\)"):
        ssm_conv(u, **system, resets=torch.zeros(2, 70))
    with pytest.raises(ValueError, match="Did you mean 'chunked'"):
        ssm_conv(u, **system, form="chunk")
