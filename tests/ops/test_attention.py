import itertools

import pytest
import torch
from laws import (
    assert_agree,
    assert_near,
    causal_law,
    leaves,
    outcome,
    reset_law,
    rows_law,
    split_law,
)
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from stepscan.ops.attention import FORMS, AttentionState, attention
from stepscan.ops.positions import positions

B, H, G, K = 2, 4, 2, 3
OPTIONS = {
    "plain": {},
    "window": {"window": 7},
    "window of one": {"window": 1},
    "bias": {"bias": 5},
    "sink": {"sink": 1},
    "all": {"window": 6, "bias": 4, "sink": 1},
}
CASES = {
    f"{form}, {name}": (form, options)
    for form, (name, options) in itertools.product(FORMS, OPTIONS.items())
    if form != "fused" or options.keys() <= {"window"}
}
every_case = pytest.mark.parametrize("case", CASES)
every_fast_case = pytest.mark.parametrize("case", [c for c in CASES if "recurrent" not in c])


def make(T, options, dtype=torch.float64, slots=5):
    """Inputs, the state of rows at different positions, resets, and the parameters bias, sink."""
    inputs = tuple(torch.randn(B, T, heads, K, dtype=dtype) for heads in (H, G, G))
    past = tuple(torch.randn(B, slots, heads, K, dtype=dtype) for heads in (H, G, G))
    early = torch.zeros(B, slots, dtype=torch.bool)
    early[0, 2:3] = True
    _, state = attention(*past, window=options.get("window"), resets=early)
    shapes = {"bias": (H, options.get("bias", 1)), "sink": (H,)}
    params = {
        name: torch.randn(shape, dtype=dtype, requires_grad=True)
        for name, shape in shapes.items()
        if name in options
    }
    return inputs, state, torch.rand(B, T) < 0.05, params


def step(form, options, params):
    def run(inputs, state, resets):
        more = {"window": options.get("window"), **params}
        return attention(*inputs, **more, state=state, resets=resets, form=form)

    return run


@every_fast_case
@pytest.mark.parametrize("T", [0, 1, 6, 7, 8, 70])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("slots", [0, 5])
@pytest.mark.parametrize("reset", [False, True])
def test_forms_law(case, T, dtype, slots, reset):
    form, options = CASES[case]
    inputs, state, resets, params = make(T, options, dtype, slots)
    run = lambda form: outcome(  # noqa: E731
        lambda xs, s: step(form, options, params)(xs, s, resets if reset else None),
        inputs,
        state,
        list(params.values()),
    )
    assert_agree(run(form), run("recurrent"), what="form")


@every_fast_case
@pytest.mark.parametrize("T", [127, 129, 258])
def test_forms_law_around_the_chunk_edges(case, T):
    form, options = CASES[case]
    inputs, state, resets, params = make(T, options)
    runs = (step(f, options, params) for f in (form, "recurrent"))
    got, want = (
        outcome(lambda xs, s, r=run: r(xs, s, resets), inputs, state, list(params.values()))
        for run in runs
    )
    assert_agree(got, want, what="form")


def test_a_reset_after_many_blocks_of_keys_leaves_no_trace_of_them():
    inputs, state, _, _ = make(1200, {}, torch.float32)
    resets = torch.zeros(B, 1200, dtype=torch.bool)
    resets[:, 1100] = True  # the flash kernel takes keys in blocks of 512: two hold nothing now
    got, want = (
        outcome(lambda xs, s, f=form: attention(*xs, state=s, resets=resets, form=f), inputs, state)
        for form in ("fused", "parallel")
    )
    assert_agree(got, want, what="fused")
    other = tuple(torch.cat([torch.randn_like(x[:, :1100]), x[:, 1100:]], 1) for x in inputs)
    for form in ("fused", "parallel"):
        y, last = attention(*inputs, state=state, resets=resets, form=form)
        y2, last2 = attention(*other, state=state, resets=resets, form=form)
        assert torch.equal(y[:, 1100:], y2[:, 1100:])
        assert torch.equal(last.keys[:, -100:], last2.keys[:, -100:])
        assert not last.keys[:, :-100].any()


@pytest.mark.parametrize("form", ["parallel", "fused"])
def test_no_form_holds_a_number_for_every_pair(form):
    inputs, state, _, _ = make(1000, {})
    with _Largest() as largest:
        attention(*inputs, state=state, resets=torch.zeros(B, 1000, dtype=torch.bool), form=form)
    assert largest.numel <= B * H * 128 * 1005 < 1000 * 1000 * B


class _Largest(TorchDispatchMode):
    """Sees every tensor that torch makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max(self.numel, *(x.numel() for x in leaves((out, args))), 0)
        return out


@every_case
def test_gradcheck(case):
    form, options = CASES[case]
    inputs, state, _, params = make(9, options)
    keys, values, length = state
    leaf = [x.requires_grad_() for x in (*inputs, keys, values)] + list(params.values())
    resets = torch.zeros(B, 9, dtype=torch.bool)
    resets[1, 4] = True

    def run(q, k, v, keys, values, *more):
        named = dict(zip(params, more, strict=True))
        y, last = step(form, options, named)(
            (q, k, v), AttentionState(keys, values, length), resets
        )
        return y, last.keys, last.values

    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


@every_case
@pytest.mark.parametrize("cuts", [[0], [1, 40], [7, 7, 22], list(range(1, 40))], ids=str)
def test_split_law(case, cuts):
    form, options = CASES[case]
    inputs, state, resets, params = make(40, options)
    for marks in (resets, None):
        run = step(form, options, params)
        split_law(run, inputs, state, cuts, resets=marks, params=list(params.values()))


@every_case
def test_reset_causal_and_rows_laws(case):
    form, options = CASES[case]
    inputs, state, resets, params = make(40, options)
    run, weights = step(form, options, params), list(params.values())
    reset_law(run, inputs, state, resets, params=weights)
    rows_law(run, inputs, state, resets=resets, params=weights)
    if options.get("window") != 1:  # a window of one returns the value itself: q has no gradient
        causal_law(run, inputs, 22)


@every_case
def test_large_scores_stay_finite(case):
    form, options = CASES[case]
    (q, k, v), state, resets, params = make(20, options)
    run = step(form, options, params)
    got = outcome(lambda xs, s: run(xs, s, resets), (1e4 * q, k, v), state, list(params.values()))
    assert all(x.isfinite().all() for x in (got.y, *got.gradients))


@pytest.mark.parametrize("form", ["recurrent", "parallel"])
def test_equals_a_softmax_written_out(form):
    """The equation of the module docstring with loops over b, h, t, j; no state, no resets."""
    (q, k, v), _, _, params = make(9, {"bias": 4, "sink": 1})
    bias, sink = params["bias"], params["sink"]
    y, _ = attention(q, k, v, window=6, bias=bias, sink=sink, form=form)
    for b, h, t in itertools.product(range(B), range(H), range(9)):
        past = range(max(0, t - 5), t + 1)
        g = h * G // H
        e = [(q[b, t, h] @ k[b, j, g] + bias[h, min(t - j, 3)]).exp() for j in past]
        want = sum(w * v[b, j, g] for w, j in zip(e, past, strict=True)) / (sink[h].exp() + sum(e))
        assert_near(y[b, t, h], want, what=f"y[{b}, {t}, {h}]")


def test_alibi_is_a_bias_by_distance():
    (q, k, v), *_ = make(12, {})
    slopes = 2.0 ** -torch.arange(1, H + 1).double()
    y, _ = attention(q, k, v, bias=-slopes[:, None] * torch.arange(12))
    t = torch.arange(12)
    mask = (slopes[:, None, None] * (t - t[:, None])).masked_fill(t > t[:, None], -torch.inf)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=True)
    assert_near(y.transpose(1, 2), want, what="ALiBi")


@every_case
@pytest.mark.parametrize("T", [1, 3, 30])
def test_a_window_bounds_the_state_and_unused_slots_are_zero(case, T):
    form, options = CASES[case]
    inputs, *_, params = make(T, options)
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[1, T - 1] = True
    _, state = step(form, options, params)(inputs, None, resets)
    assert state.keys.shape[1] == min(T, options.get("window", T + 1) - 1)
    assert state.length.tolist() == [T, 1]
    assert not state.keys[1, :-1].any()
    assert not state.values[1, :-1].any()
    assert state.values[1, -1:].all()


def test_positions_count_from_the_last_reset():
    resets = torch.tensor([[0, 0, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0], [0] * 6]).bool()
    got = positions(torch.tensor([3, 9, 0]), resets)
    assert got.tolist() == [[3, 4, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert positions(torch.tensor([3]), resets[:1, :0]).shape == (1, 0)


@pytest.mark.plain
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("reset", [False, True])
def test_a_state_does_not_keep_its_inputs_alive(window, reset):
    qkv = torch.randn(B, 20, H + 2 * G, K)
    resets = torch.zeros(B, 20, dtype=torch.bool) if reset else None
    _, state = attention(*qkv.split((H, G, G), 2), window=window, resets=resets)
    for x in (state.keys, state.values):
        assert x.untyped_storage().nbytes() == x.nbytes


def test_half_precision_inputs_keep_a_wide_state():
    inputs, *_ = make(4, {}, torch.bfloat16)
    y, state = attention(*inputs)
    assert (y.dtype, state.keys.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (q, k, v), state, resets, _ = make(6, {})
    with pytest.raises(ValueError, match=r"G a divisor of H; got q \(2, 6, 3, 3\)"):
        attention(q[:, :, :3], k, v)
    with pytest.raises(ValueError, match=r"bias \[H N\] by distance, H = 4; got \(2, 5\)"):
        attention(q, k, v, bias=torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"sink \[H\], H = 4; got \(2,\)"):
        attention(q, k, v, sink=torch.zeros(2))
    with pytest.raises(ValueError, match="window at least 1 or None, got 0"):
        attention(q, k, v, window=0)
    with pytest.raises(ValueError, match=r"state: want \(2, 5, 2, 3\), got \(2, 5, 2, 2\)"):
        attention(q, k, v, state=state._replace(keys=state.keys[..., :2]))
    with pytest.raises(ValueError, match=r"want length int64 \(2,\), got torch.float32"):
        attention(q, k, v, state=state._replace(length=state.length.float()))
    with pytest.raises(ValueError, match="resets: want bool"):
        attention(q, k, v, resets=resets.long())
    with pytest.raises(ValueError, match="Did you mean 'fused'"):
        attention(q, k, v, form="fuse")
    with pytest.raises(ValueError, match="takes no bias, no sink and K = V; use 'parallel'"):
        attention(q, k, v, sink=torch.zeros(4), form="fused")


def test_dropout_drops_weights_and_keeps_their_mean():
    q, k, v = (torch.randn(1, 6, 2, 4) for _ in range(3))
    whole, _ = attention(q, k, v)
    torch.manual_seed(0)
    many = torch.stack([attention(q, k, v, dropout=0.5)[0] for _ in range(2000)])
    torch.testing.assert_close(many.mean(0), whole, atol=0.15, rtol=0)
    values = many[:, 0, 0]  # the first token has one weight: it is dropped, or doubled
    kept = values.abs().sum((1, 2)) > 0
    torch.testing.assert_close(values[kept].abs().amax(0), 2 * v[0, 0].abs())
    assert 0.4 < float((many[:, 0, 0, 0] == 0).all(1).float().mean()) < 0.6
    with pytest.raises(ValueError, match="dropout wants form='parallel'"):
        attention(q, k, v, dropout=0.5, form="fused")
