import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.semiring_scan import FORMS, SEMIRINGS, semiring_scan

B, D = 2, 3
SCALES = {"mild": 1.0, "zero": 0.0, "extreme": 1e4}
every_form = pytest.mark.parametrize("form", FORMS)
every_semiring = pytest.mark.parametrize("semiring", SEMIRINGS)
every_start = pytest.mark.parametrize("initial", [-torch.inf, 0.0])


def make(T=70, dtype=torch.float64, scale=1.0):
    a, b = torch.randn(2, B, T, D, dtype=dtype)
    return (-scale * a.abs(), b), torch.randn(B, D, dtype=dtype), torch.rand(B, T) < 0.05


def step(form, semiring, initial=-torch.inf):
    return lambda xs, state, resets: semiring_scan(
        *xs, semiring, initial=initial, state=state, resets=resets, form=form
    )


@every_semiring
@every_start
@pytest.mark.parametrize("T", [0, 1, 31, 32, 33, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forms_law(semiring, initial, T, dtype):
    inputs, state, resets = make(T, dtype)
    run = [step(form, semiring, initial) for form in ("blocked", "recurrent")]
    forms_law(*run, inputs, state, resets=resets)
    if T:
        y, want = (r(inputs, None, resets) for r in run)
        assert_near(y, want, what="from a fresh start")


@every_semiring
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forms_law_in_every_regime(semiring, scale, dtype):
    inputs, state, resets = make(dtype=dtype, scale=SCALES[scale])
    if semiring == "min_max":  # equal numbers share a gradient: another split is as right
        inputs = (inputs[0] + 1e-3 * torch.randn_like(inputs[0]), inputs[1])
    forms_law(step("blocked", semiring), step("recurrent", semiring), inputs, state, resets=resets)


@every_form
@every_semiring
@every_start
def test_every_law_of_an_op(form, semiring, initial):
    inputs, state, resets = make()
    run = step(form, semiring, initial)
    for cuts in ([0], [1, 70], [32, 64], [3, 3, 40], list(range(1, 70))):
        split_law(run, inputs, state, cuts, resets=resets)
    reset_law(run, inputs, state, resets)
    rows_law(run, inputs, state, resets=resets)
    causal_law(run, inputs, 40)


@every_form
@every_semiring
@every_start
def test_gradcheck(form, semiring, initial):
    inputs, state, _ = make(T=35)
    leaf = [x[:1].requires_grad_() for x in (*inputs, state)]
    resets = torch.zeros(1, 35, dtype=torch.bool)
    resets[0, [7, 33]] = True
    run = lambda a, b, s: step(form, semiring, initial)((a, b), s, resets)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaf)


def test_log_semiring_is_the_cumulative_one():
    (_, b), *_ = make()
    h, _ = semiring_scan(torch.zeros_like(b), b, "logsumexp_plus")
    torch.testing.assert_close(h, b.logcumsumexp(1))
    h, _ = semiring_scan(torch.zeros_like(b), b, "max_plus")
    torch.testing.assert_close(h, b.cummax(1).values)
    h, _ = semiring_scan(torch.full_like(b, 0.5), b, "min_max", initial=0.0)
    assert h.min() >= b.min()
    assert h[:, 0].equal(b[:, 0].clamp(min=0.0))


def test_half_precision_inputs_keep_a_wide_state():
    inputs, *_ = make(dtype=torch.bfloat16)
    y, state = step("auto", "max_plus")(inputs, None, None)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (a, b), *_ = make()
    with pytest.raises(ValueError, match="Did you mean 'max_plus'"):
        semiring_scan(a, b, "max_pls")
    with pytest.raises(ValueError, match=r"b torch.float64 \(2, 70, 2\)"):
        semiring_scan(a, b[..., :2], "max_plus")
    with pytest.raises(ValueError, match="want real a, b"):
        semiring_scan(a + 0j, b + 0j, "max_plus")
    with pytest.raises(ValueError, match="Did you mean 'blocked'"):
        semiring_scan(a, b, "max_plus", form="block")
