import math

import pytest
import torch
from laws import assert_agree, causal_law, outcome, reset_law, rows_law, split_law

from stepscan.ops import chunk_attention as chunk_op
from stepscan.ops import dilated_conv as dilated_op
from stepscan.ops.chunk_attention import FUNCTIONS, chunk_attention
from stepscan.ops.dilated_conv import dilated_conv

B, H, K, V, D = 2, 2, 3, 4, 3
marked = pytest.mark.parametrize("marked", [False, True], ids=["", "resets"])
every_cut = pytest.mark.parametrize("cuts", [[0], [1, 40], [3, 3, 20], list(range(1, 40))], ids=str)


def chunk_case(function="softmax", chunk=7, dtype=torch.float64):
    bias = torch.randn(H, chunk, dtype=dtype, requires_grad=True)

    def run(form):
        return lambda xs, s, r: chunk_attention(
            *xs, bias=bias, function=function, state=s, resets=r, form=form
        )

    return run, [bias]


def qkv(T, dtype=torch.float64):
    return tuple(torch.randn(B, T, H, size, dtype=dtype) for size in (K, K, V))


def dilated_case(window=3, dilation=4, dtype=torch.float64):
    weight = torch.randn(D, window, dtype=dtype, requires_grad=True)
    bias = torch.randn(D, dtype=dtype, requires_grad=True)

    def run(form):
        return lambda xs, s, r: dilated_conv(
            xs[0], weight, bias, dilation=dilation, state=s, resets=r, form=form
        )

    return run, [weight, bias]


CASES = {
    **{name: (lambda name=name: chunk_case(name), chunk_op.FORMS, qkv) for name in FUNCTIONS},
    "chunk of 1": (lambda: chunk_case(chunk=1), chunk_op.FORMS, qkv),
    "chunk of 50": (lambda: chunk_case(chunk=50), chunk_op.FORMS, qkv),
    "dilated": (dilated_case, dilated_op.FORMS, lambda T: (torch.randn(B, T, D).double(),)),
}
every_form = pytest.mark.parametrize(
    ("make", "draw", "form"),
    [(make, draw, form) for make, forms, draw in CASES.values() for form in forms],
    ids=[f"{name}-{form}" for name, (_, forms, _) in CASES.items() for form in forms],
)


def some_resets(T, marked):
    return torch.rand(B, T) < 0.08 if marked else None


@every_form
@pytest.mark.parametrize("T", [0, 1, 6, 7, 8, 40])
@marked
def test_forms_agree(make, draw, form, T, marked):
    (run, params), resets = make(), some_resets(T, marked)
    _, state = run("recurrent")(draw(9), None, None)
    inputs = draw(T)
    at = lambda form: lambda xs, s: run(form)(xs, s, resets)  # noqa: E731
    got, want = (outcome(at(f), inputs, state, params) for f in (form, "recurrent"))
    assert_agree(got, want, what=form)


@every_form
@every_cut
@marked
def test_split_law(make, draw, form, cuts, marked):
    run, params = make()
    _, state = run(form)(draw(9), None, None)
    split_law(run(form), draw(40), state, cuts, resets=some_resets(40, marked), params=params)


@every_form
def test_reset_rows_and_causal_laws(make, draw, form):
    run, params = make()
    _, state = run(form)(draw(9), None, None)
    inputs, resets = draw(40), some_resets(40, True)
    reset_law(run(form), inputs, state, resets, params=params)
    rows_law(run(form), inputs, state, resets=resets, params=params)
    causal_law(run(form), inputs, 23)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_chunks_by_hand(function):
    """Each chunk as a whole, with one mask."""
    chunk, T = 5, 13
    (run, (bias,)), (q, k, v) = chunk_case(function, chunk), qkv(T)
    y, _ = run("auto")((q, k, v), None, None)
    for start in range(0, T, chunk):
        part = slice(start, min(start + chunk, T))
        size = part.stop - start
        lag = torch.arange(size)[:, None] - torch.arange(size)
        near = bias[:, lag.clamp(min=0)]
        scores = torch.einsum("bqhk,bshk->bhqs", q[:, part], k[:, part])
        if function == "softmax":
            weights = (scores + near).masked_fill(lag < 0, -torch.inf).softmax(-1)
        else:
            s = scores / torch.arange(1, size + 1)[:, None] + near
            mean, deviation = math.sqrt(0.5), math.sqrt(0.25 / math.pi)
            laplace = 0.5 * (1 + torch.erf((s - mean) / (deviation * math.sqrt(2))))
            weights = laplace if function == "laplace" else s.clamp(min=0).square()
            weights = weights.masked_fill(lag < 0, 0.0)
        want = torch.einsum("bhqs,bshv->bqhv", weights, v[:, part])
        torch.testing.assert_close(y[:, part], want)


def test_holes_are_a_convolution_with_zeros():
    (run, (weight, bias)), x = dilated_case(), torch.randn(B, 30, D).double()
    y, _ = run("auto")((x,), None, None)
    padded = torch.nn.functional.pad(x.mT, (8, 0))
    want = torch.nn.functional.conv1d(padded, weight[:, None], bias, dilation=4, groups=D)
    torch.testing.assert_close(y, want.mT)


@pytest.mark.parametrize("form", chunk_op.FORMS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_chunk_gradcheck(form, function):
    run, _ = chunk_case(function, 4)
    inputs = [x[:1].requires_grad_() for x in qkv(9)]
    check = lambda *xs: run(form)(xs, None, None)[0]  # noqa: E731
    assert torch.autograd.gradcheck(check, inputs, fast_mode=True)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    q, k, v = qkv(5)
    with pytest.raises(ValueError, match="with C at least 1"):
        chunk_attention(q, k, v, bias=torch.zeros(H, 0).double())
    with pytest.raises(ValueError, match="Did you mean 'laplace'"):
        chunk_attention(q, k, v, bias=torch.zeros(H, 3).double(), function="laplac")
    with pytest.raises(ValueError, match="at least 1"):
        dilated_conv(torch.zeros(1, 2, 3), torch.zeros(3, 2), dilation=0)
