import math

import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.attention import attention
from stepscan.ops.feedback_attention import CHUNK, FORMS, feedback_attention
from stepscan.ops.linear_scan import linear_scan

B, H, K = 2, 2, 3
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def make(T, dtype=torch.float64, slots=5):
    """Inputs, the state of rows at different positions, and resets."""
    draw = lambda T: (*torch.randn(3, B, T, H, K, dtype=dtype), torch.randn(B, T, H, dtype=dtype))  # noqa: E731
    *past, gain = draw(slots)
    early = torch.zeros(B, slots, dtype=torch.bool)
    early[0, 2:3] = True
    _, state = feedback_attention(*past, gain=gain.tanh(), resets=early)
    *inputs, gain = draw(T)
    return (*inputs, gain.tanh()), state, torch.rand(B, T) < 0.08


def step(form):
    def run(inputs, state, resets):
        x, q, k, gain = inputs
        return feedback_attention(x, q, k, gain=gain, state=state, resets=resets, form=form)

    return run


@every_dtype
@pytest.mark.parametrize("T", [0, 1, 7, 50, CHUNK + 1])
@pytest.mark.parametrize("slots", [0, 5])
def test_the_triangular_system_equals_the_steps(dtype, T, slots):
    inputs, state, resets = make(T, dtype, slots)
    forms_law(step("triangular"), step("recurrent"), inputs, state, resets=resets)
    forms_law(step("triangular"), step("recurrent"), inputs, state)


@every_form
@every_dtype
def test_every_law_of_an_op(form, dtype):
    inputs, state, resets = make(24, dtype)
    for cuts in ([0], [1, 24], [3, 3, 17], list(range(1, 24))):
        split_law(step(form), inputs, state, cuts, resets=resets)
    reset_law(step(form), inputs, state, resets)
    rows_law(step(form), inputs, state, resets=resets)
    causal_law(step(form), inputs, 12)


@every_form
def test_gradcheck(form):
    inputs, *_ = make(6)
    resets = torch.zeros(1, 6, dtype=torch.bool)
    resets[0, 4] = True
    leaf = [x[:1].requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *xs: step(form)(xs, None, resets)[0], leaf)


def test_equals_the_sum_written_out():
    (x, q, k, gain), *_ = make(9)
    y, _ = feedback_attention(x, q, k, gain=gain)
    for t in range(9):
        want = x[:, t]
        if t:
            weights = torch.einsum("bhk,bshk->bhs", q[:, t], k[:, :t]).softmax(-1)
            found = torch.einsum("bhs,bshk->bhk", weights, y[:, :t])
            want = want + gain[:, t, :, None] * found
        assert_near(y[:, t], want, what=f"y[{t}]")


def slope(y, low=64, high=4096):
    """Of the impulse response over its age, both on logarithmic axes, by least squares."""
    age = torch.arange(low, high).double()
    line = torch.stack([age.log(), torch.ones_like(age)], 1)
    return torch.linalg.lstsq(line, y.flatten()[low:high, None].log()).solution[0].item()


@pytest.mark.parametrize("gain", [0.3, 0.6, 0.9])
def test_uniform_feedback_forgets_by_a_power_law(gain):
    T = 4096
    impulse = torch.zeros(1, T, 1, 1, dtype=torch.float64)
    impulse[:, 0] = 1
    same = torch.zeros_like(impulse)
    y, _ = feedback_attention(impulse, same, same, gain=torch.full_like(impulse[..., 0], gain))
    assert slope(y) == pytest.approx(gain - 1, abs=1e-2)
    read, _ = attention(same, same, impulse)
    assert slope(read) == pytest.approx(-1, abs=1e-2)
    decayed, _ = linear_scan(torch.full_like(impulse[..., 0], gain), impulse[..., 0])
    assert math.log(decayed[0, 65, 0] / decayed[0, 64, 0]) == pytest.approx(math.log(gain))
    assert decayed[0, 200, 0] < 1e-4 * y[0, 200, 0, 0]


def test_half_precision_inputs_keep_a_wide_state():
    *inputs, gain = (x.bfloat16() for x in make(5)[0])
    y, state = feedback_attention(*inputs, gain=gain)
    assert (y.dtype, state.values.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (x, q, k, gain), *_ = make(5)
    with pytest.raises(ValueError, match=r"gain \[B T H\]; got x \(2, 5, 2, 3\)"):
        feedback_attention(x, q, k, gain=gain[..., :1])
    with pytest.raises(ValueError, match="Did you mean 'triangular'"):
        feedback_attention(x, q, k, gain=gain, form="triangle")
