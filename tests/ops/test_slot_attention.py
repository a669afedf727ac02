import pytest
import torch
from laws import causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.slot_attention import FORMS, SlotState, slot_attention

B, H, K, V, M = 2, 2, 3, 5, 4
NAMES = ("q", "k", "v", "s", "log_decay")
REGIMES = {
    "mild": lambda u: -u,
    "zero": lambda u: 0 * u,
    "strong": lambda u: -20 * u,
    "extreme": lambda u: -(10 ** (8 * u - 4)),  # -1e-4 ... -1e4
}
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def make(T=40, regime="mild", dtype=torch.float64):
    q, k, v = (torch.randn(B, T, H, d, dtype=dtype) for d in (K, K, V))
    s = torch.rand(B, T, H, M, dtype=dtype)
    g = REGIMES[regime](torch.rand(B, T, H, M, dtype=dtype))
    keys, values = torch.randn(B, H, K, M, dtype=dtype), torch.randn(B, H, M, V, dtype=dtype)
    return (q, k, v, s, g), SlotState(keys, values), torch.rand(B, T) < 0.05


def step(form):
    def run(inputs, state, resets):
        named = dict(zip(NAMES, inputs, strict=True))
        return slot_attention(**named, state=state, resets=resets, form=form)

    return run


@pytest.mark.parametrize("T", [0, 1, 15, 16, 17, 40])
@every_dtype
def test_forms_law(T, dtype):
    inputs, state, resets = make(T, dtype=dtype)
    forms_law(step("chunked"), step("recurrent"), inputs, state, resets=resets)


@pytest.mark.parametrize("regime", REGIMES)
@every_dtype
def test_forms_law_in_every_regime_of_decay(regime, dtype):
    inputs, state, resets = make(regime=regime, dtype=dtype)
    forms_law(step("chunked"), step("recurrent"), inputs, state, resets=resets)


@every_form
def test_gradcheck(form):
    inputs, state, resets = make(18)
    leaves = [x.requires_grad_() for x in (*inputs, *state)]

    def run(*x):
        y, (keys, values) = step(form)(x[:5], SlotState(*x[5:]), resets)
        return y, keys, values

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@every_form
@pytest.mark.parametrize("cuts", [[0], [1, 40], [16, 32], [3, 3, 20], list(range(1, 40))], ids=str)
def test_split_law(form, cuts):
    inputs, state, resets = make()
    split_law(step(form), inputs, state, cuts, resets=resets)


@every_form
def test_reset_causal_and_rows_laws(form):
    inputs, state, resets = make()
    reset_law(step(form), inputs, state, resets)
    rows_law(step(form), inputs, state, resets=resets)
    causal_law(step(form), inputs, 20)


def test_one_slot_per_token_is_softmax_attention():
    (q, k, v, *_), *_ = make(M)
    s = torch.eye(M).double()[None, :, None].expand(B, -1, H, -1)
    y, state = slot_attention(q, k, v, s=s)
    torch.testing.assert_close(state.values.transpose(1, 2), v)
    scores = torch.einsum("bthk,bshk->bhts", q, k)
    empty = torch.ones(M, M, dtype=torch.bool).triu(1)  # a slot not yet written has score 0
    want = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    torch.testing.assert_close(y, torch.einsum("bhts,bshv->bthv", want, v))


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (q, k, v, s, g), state, _ = make()
    with pytest.raises(ValueError, match=r"log_decay \(2, 40, 2, 2\)"):
        slot_attention(q, k, v, s=s, log_decay=g[..., :2])
    with pytest.raises(ValueError, match=r"state: want \(2, 2, 3, 4\), got \(2, 2, 4, 5\)"):
        slot_attention(q, k, v, s=s, state=SlotState(state.values, state.values))
    with pytest.raises(ValueError, match="Did you mean 'chunked'"):
        slot_attention(q, k, v, s=s, form="chunk")
