import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law

from stepscan import state as states
from stepscan.ops.softmax_scan import FORMS, SoftmaxSum, merge, softmax_scan

B, H, V = 2, 3, 4
every_form = pytest.mark.parametrize("form", FORMS)
every_fast_form = pytest.mark.parametrize("form", [f for f in FORMS if f != "recurrent"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def make(T, dtype=torch.float64, scale=3.0):
    s, v = scale * torch.randn(B, T, H, dtype=dtype), torch.randn(B, T, H, V, dtype=dtype)
    _, state = softmax_scan(torch.randn(B, 2, H, dtype=dtype), torch.randn(B, 2, H, V, dtype=dtype))
    return (s, v), state, torch.rand(B, T) < 0.08


def step(form):
    return lambda xs, state, resets: softmax_scan(*xs, state=state, resets=resets, form=form)


@every_fast_form
@every_dtype
@pytest.mark.parametrize("T", [0, 1, 2, 7, 64, 65, 130])
def test_forms_law(form, dtype, T):
    inputs, state, resets = make(T, dtype)
    forms_law(step(form), step("recurrent"), inputs, state, resets=resets)
    if T:
        got, want = (step(f)(inputs, None, resets) for f in (form, "recurrent"))
        assert_near(got, want, what="from a fresh start")


@every_form
@every_dtype
def test_every_law_of_an_op(form, dtype):
    inputs, state, resets = make(40, dtype)
    for cuts in ([0], [1, 40], [3, 3, 17], list(range(1, 40))):
        split_law(step(form), inputs, state, cuts, resets=resets)
    reset_law(step(form), inputs, state, resets)
    rows_law(step(form), inputs, state, resets=resets)
    causal_law(step(form), inputs, 20)


@every_form
@every_dtype
def test_is_masked_softmax_attention_at_any_size_of_the_scores(form, dtype):
    (_, v), _, resets = make(50, dtype)
    s = 1000 * torch.rand(B, 50, H, dtype=dtype) - 500
    s[:, :5], s[:, 25:30] = -500, 500  # the least at first: a maximum that starts at 0 would fail
    y, _ = softmax_scan(s, v, resets=resets, form=form)
    segment = resets.cumsum(1)
    seen = (segment[:, :, None] == segment[:, None]).tril()[:, None]
    scores = s.transpose(1, 2)[:, :, None].expand(B, H, 50, 50)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    assert_near(y, torch.einsum("bhts,bshv->bthv", weights, v), what="y")


@every_form
def test_gradcheck(form):
    """Of y: the state's scale passes no gradient, so its sums are derived at a fixed scale."""
    (s, v), state, _ = make(9)
    resets = torch.zeros(1, 9, dtype=torch.bool)
    resets[0, [0, 6]] = True
    leaf = [x[:1].requires_grad_() for x in (s, v, *states.detach(state))]
    run = lambda s, v, *old: step(form)((s, v), SoftmaxSum(*old), resets)[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, leaf)


def test_merging_is_associative_and_nothing_is_neutral():
    (s, v), *_ = make(6, scale=100.0)
    parts = [softmax_scan(x, w)[1] for x, w in zip(s.split(2, 1), v.split(2, 1), strict=True)]
    left = merge(merge(parts[0], parts[1]), parts[2])
    right = merge(parts[0], merge(parts[1], parts[2]))
    assert_near(left, right, what="order of merging")
    assert_near(left, softmax_scan(s, v)[1], what="whole")
    none = SoftmaxSum(*(torch.zeros_like(x) for x in left))
    none = none._replace(peak=torch.full_like(left.peak, -torch.inf))
    for pair in ((left, none), (none, left)):
        assert_near(merge(*pair), left, what="with nothing")
    empty = merge(none, none)
    assert not empty.weight.any()
    assert empty.peak.isneginf().all()


def test_the_state_is_as_large_after_any_number_of_tokens():
    sizes = {states.nbytes(softmax_scan(torch.randn(1, T, 1), torch.randn(1, T, 1, 2))[1])
             for T in (10, 100_000)}  # fmt: skip
    assert len(sizes) == 1


def test_half_precision_inputs_keep_a_wide_state():
    y, state = softmax_scan(torch.randn(1, 5, 2).bfloat16(), torch.randn(1, 5, 2, 3).bfloat16())
    assert (y.dtype, *{x.dtype for x in state}) == (torch.bfloat16, torch.float32)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (s, v), *_ = make(5)
    with pytest.raises(ValueError, match=r"want s \[B T H\], v \[B T H V\]; got s \(2, 5, 2\)"):
        softmax_scan(s[..., :2], v)
    with pytest.raises(ValueError, match="Did you mean 'doubling'"):
        softmax_scan(s, v, form="double")
