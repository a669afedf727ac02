import pytest
import torch
from laws import assert_agree, assert_near, causal_law, outcome, reset_law, rows_law, split_law
from native import accuracy_law, every_level, every_thread, needs, repeat_law
from torch.nn import functional as F

from stepscan.ops.short_conv import short_conv

B, D = 2, 3
native = needs("short_conv")
LAWFUL = [
    ("recurrent", torch.float64),
    ("shifted", torch.float64),
    pytest.param("cpu", torch.float32, marks=native),
]
every_case = pytest.mark.parametrize(("form", "dtype"), LAWFUL, ids=str)
every_pair = pytest.mark.parametrize(
    ("form", "dtype"), [*LAWFUL[1:], ("shifted", torch.float32)], ids=str
)
every_window = pytest.mark.parametrize("window", [1, 2, 4, 16])


def make(T, window, dtype=torch.float64):
    x, state = torch.randn(B, T, D, dtype=dtype), torch.randn(B, window - 1, D, dtype=dtype)
    weight = torch.randn(D, window, dtype=dtype, requires_grad=True)
    bias = torch.randn(D, dtype=dtype, requires_grad=True)
    return x, state, torch.rand(B, T) < 0.1, [weight, bias]


def step(form, params, activation="silu"):
    def run(inputs, state, resets):
        return short_conv(
            *inputs, *params, activation=activation, state=state, resets=resets, form=form
        )

    return run


@every_pair
@every_window
@pytest.mark.parametrize("T", [0, 1, 2, 3, 4, 17, 40])
def test_forms_law(form, window, T, dtype):
    x, state, resets, params = make(T, window, dtype)
    for marks in (resets, None):
        got, want = (
            outcome(lambda xs, s, f=f, m=marks: step(f, params)(xs, s, m), (x,), state, params)
            for f in (form, "recurrent")
        )
        assert_agree(got, want, what="form")


@pytest.mark.parametrize("form", ["recurrent", "shifted"])
@every_window
def test_gradcheck(form, window):
    x, state, resets, params = make(9, window)
    leaf = [x.requires_grad_(), state.requires_grad_(), *params]
    run = lambda x, s, *p: step(form, p)((x,), s, resets)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


@every_case
@every_window
@pytest.mark.parametrize("cuts", [[0], [1, 40], [3, 3, 20], list(range(1, 40))], ids=str)
def test_split_law(form, dtype, window, cuts):
    x, state, resets, params = make(40, window, dtype)
    for marks in (resets, None):
        split_law(step(form, params), (x,), state, cuts, resets=marks, params=params)


@every_case
@every_window
def test_reset_causal_and_rows_laws(form, dtype, window):
    x, state, resets, params = make(40, window, dtype)
    reset_law(step(form, params), (x,), state, resets, params=params)
    rows_law(step(form, params), (x,), state, resets=resets, params=params)
    causal_law(step(form, params), (x,), 22)


@every_case
@every_window
def test_equals_a_padded_conv1d(form, dtype, window):
    x, _, _, (weight, bias) = make(20, window, dtype)
    y, state = short_conv(x, weight, bias, form=form)
    want = F.conv1d(F.pad(x.mT, (window - 1, 0)), weight[:, None], bias, groups=D).mT
    assert_near(y, want, what="y")
    assert_near(state, x[:, 21 - window :], what="state")


SHAPES = [  # rows, steps, channels, window: around strips, stretches, tiles and vectors
    (1, 1, 1, 4),
    (3, 7, 17, 2),
    (2, 131, 33, 4),
    (1, 300, 515, 4),
    (2, 40, 5, 40),
    (1, 33, 64, 3),
]


@native
@every_level
@every_thread
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_form_on_poisoned_memory(level, threads, shape, poisoned):
    rows, steps, channels, window = shape
    x, state = torch.randn(rows, steps, channels), torch.randn(rows, window - 1, channels)
    weight, bias = torch.randn(channels, window), torch.randn(channels)
    resets = torch.rand(rows, steps) < 0.05
    for with_bias, activation, marks in ((True, "silu", None), (False, None, resets)):

        def with_weights(form, with_bias=with_bias, activation=activation):
            return lambda xs, s, m: step(form, (xs[1], xs[2] if with_bias else None), activation)(
                xs[:1], s, m
            )

        inputs = (x, weight, bias)
        accuracy_law(with_weights, inputs, state, resets=marks)
        repeat_law(with_weights, inputs, state, resets=marks)


@every_case
def test_any_strides_will_do_and_inputs_are_kept(form, dtype):
    x, state, resets, params = make(40, 4, dtype)
    half = torch.cat([x, x], -1)[..., :D]  # as a part of a wider projection
    turned = state.mT.contiguous().mT
    weight = params[0].detach().mT.contiguous().mT.requires_grad_()
    before = [t.detach().clone() for t in (half, turned, weight)]
    assert not any(t.is_contiguous() for t in (half, turned, weight))
    want = outcome(lambda xs, s: step("recurrent", params)(xs, s, resets), (x,), state, params)
    mine = [weight, params[1]]
    got = outcome(lambda xs, s: step(form, mine)(xs, s, resets), (half,), turned, mine)
    assert_agree(got, want, what="strides")
    assert all(map(torch.equal, (half, turned, weight), before))


@native
@pytest.mark.plain
def test_native_form_is_a_whole_operator():
    x, state, resets, params = make(9, 4, torch.float32)
    args = (x.requires_grad_(), *params, state.requires_grad_())
    for silu, bias, marks in ((True, params[1], None), (False, None, resets)):
        full = (x, params[0], bias, state, marks, silu)
        torch.library.opcheck(torch.ops.stepscan.short_conv.default, full)
    compiled = torch.compile(short_conv, backend="eager", fullgraph=True)
    assert_near(compiled(*args[:3]), short_conv(*args[:3]), what="compiled")
    y, _ = short_conv(*args[:3], activation="silu", form="cpu")
    (once,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        once.sum().backward()


@pytest.mark.plain
@every_pair
def test_a_state_does_not_keep_the_whole_stretch_alive(form, dtype):
    x, *_, params = make(500, 4, dtype)
    for resets in (None, torch.zeros(B, 500, dtype=torch.bool)):
        _, state = short_conv(x, *params, resets=resets, form=form)
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
    with pytest.raises(ValueError, match="use another form"):
        short_conv(x, weight, form="cpu")
    with pytest.raises(ValueError, match="Did you mean 'shifted'"):
        short_conv(x, weight, form="shift")
