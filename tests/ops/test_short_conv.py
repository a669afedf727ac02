import pytest
import torch
from laws import assert_agree, assert_near, causal_law, outcome, reset_law, rows_law, split_law
from torch.nn import functional as F

from stepscan.ops.short_conv import FORMS, short_conv

B, D = 2, 3
every_form = pytest.mark.parametrize("form", FORMS)
every_window = pytest.mark.parametrize("window", [1, 2, 4, 16])


def make(T, window, dtype=torch.float64):
    x, state = torch.randn(B, T, D, dtype=dtype), torch.randn(B, window - 1, D, dtype=dtype)
    weight = torch.randn(D, window, dtype=dtype, requires_grad=True)
    bias = torch.randn(D, dtype=dtype, requires_grad=True)
    return x, state, torch.rand(B, T) < 0.1, [weight, bias]


def step(form, params):
    def run(inputs, state, resets):
        return short_conv(
            *inputs, *params, activation="silu", state=state, resets=resets, form=form
        )

    return run


@pytest.mark.parametrize("form", [f for f in FORMS if f != "recurrent"])
@every_window
@pytest.mark.parametrize("T", [0, 1, 2, 3, 4, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forms_law(form, window, T, dtype):
    x, state, resets, params = make(T, window, dtype)
    for marks in (resets, None):
        got, want = (
            outcome(lambda xs, s, f=f, m=marks: step(f, params)(xs, s, m), (x,), state, params)
            for f in (form, "recurrent")
        )
        assert_agree(got, want, what="form")


@every_form
@every_window
def test_gradcheck(form, window):
    x, state, resets, params = make(9, window)
    leaf = [x.requires_grad_(), state.requires_grad_(), *params]
    run = lambda x, s, *p: step(form, p)((x,), s, resets)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


@every_form
@every_window
@pytest.mark.parametrize("cuts", [[0], [1, 40], [3, 3, 20], list(range(1, 40))], ids=str)
def test_split_law(form, window, cuts):
    x, state, resets, params = make(40, window)
    for marks in (resets, None):
        split_law(step(form, params), (x,), state, cuts, resets=marks, params=params)


@every_form
@every_window
def test_reset_causal_and_rows_laws(form, window):
    x, state, resets, params = make(40, window)
    reset_law(step(form, params), (x,), state, resets, params=params)
    rows_law(step(form, params), (x,), state, resets=resets, params=params)
    causal_law(step(form, params), (x,), 22)


@every_form
@every_window
def test_equals_a_padded_conv1d(form, window):
    x, _, _, (weight, bias) = make(20, window)
    y, state = short_conv(x, weight, bias, form=form)
    want = F.conv1d(F.pad(x.mT, (window - 1, 0)), weight[:, None], bias, groups=D).mT
    assert_near(y, want, what="y")
    assert_near(state, x[:, 21 - window :], what="state")


@pytest.mark.plain
def test_a_state_does_not_keep_the_whole_stretch_alive():
    x, *_, params = make(500, 4)
    for resets in (None, torch.zeros(B, 500, dtype=torch.bool)):
        _, state = short_conv(x, *params, resets=resets)
        assert state.untyped_storage().nbytes() == state.nbytes


def test_half_precision_inputs_keep_a_wide_state():
    x, *_, params = make(5, 4, torch.bfloat16)
    y, state = short_conv(x, *params)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    x, state, resets, (weight, bias) = make(6, 4)
    with pytest.raises(ValueError, match=r"got x \(2, 6, 3\), weight \(2, 4\), bias \(3,\)"):
        short_conv(x, weight[:2], bias)
    with pytest.raises(ValueError, match=r"bias \(2,\)"):
        short_conv(x, weight, bias[:2])
    with pytest.raises(ValueError, match=r"weight \(3, 0\)"):
        short_conv(x, weight[:, :0])
    with pytest.raises(ValueError, match=r"state: want \(2, 3, 3\), got \(2, 2, 3\)"):
        short_conv(x, weight, state=state[:, 1:])
    with pytest.raises(ValueError, match="resets: want bool"):
        short_conv(x, weight, resets=resets.long())
    with pytest.raises(ValueError, match=r"unknown activation 'relu'\. Known: silu"):
        short_conv(x, weight, activation="relu")
    with pytest.raises(ValueError, match="Did you mean 'shifted'"):
        short_conv(x, weight, form="shift")
