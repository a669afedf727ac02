import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.attention import attention
from stepscan.ops.fading_cache import FadingCache
from stepscan.ops.forgetting_attention import FORMS, forgetting_attention

B, H, K, V = 2, 2, 3, 5
NAMES = ("q", "k", "v", "log_decay")
REGIMES = {
    "mild": lambda u: -u,
    "zero": lambda u: 0 * u,
    "strong": lambda u: -20 * u,
    "extreme": lambda u: -(10 ** (8 * u - 4)),  # -1e-4 ... -1e4
}
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def make(T=70, regime="mild", dtype=torch.float64):
    q, k, v = (torch.randn(B, T, H, d, dtype=dtype) for d in (K, K, V))
    g = REGIMES[regime](torch.rand(B, T, H, dtype=dtype))
    length = torch.tensor([3, 1])
    unused = (torch.arange(3) < 3 - length[:, None])[..., None]
    keys, values = torch.randn(B, 3, H, K, dtype=dtype), torch.randn(B, 3, H, V, dtype=dtype)
    past = (x.masked_fill(unused[..., None], 0.0) for x in (keys, values))
    decay = -torch.rand(B, 3, H, dtype=dtype).masked_fill(unused, 0.0)
    return (q, k, v, g), FadingCache(*past, decay, length), torch.rand(B, T) < 0.05


def step(form):
    def run(inputs, state, resets):
        named = dict(zip(NAMES, inputs, strict=True))
        return forgetting_attention(**named, state=state, resets=resets, form=form)

    return run


@pytest.mark.parametrize("T", [0, 1, 63, 64, 65, 130])
@every_dtype
def test_forms_law(T, dtype):
    inputs, state, resets = make(T, dtype=dtype)
    forms_law(step("parallel"), step("recurrent"), inputs, state, resets=resets)


@pytest.mark.parametrize("regime", REGIMES)
@every_dtype
def test_forms_law_in_every_regime_of_decay(regime, dtype):
    inputs, state, resets = make(regime=regime, dtype=dtype)
    forms_law(step("parallel"), step("recurrent"), inputs, state, resets=resets)


@every_form
def test_gradcheck(form):
    inputs, state, resets = make(9)
    leaves = [x.requires_grad_() for x in (*inputs, *state[:3])]
    run = lambda *x: step(form)(x[:4], FadingCache(*x[4:], state.length), resets)[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@every_form
@pytest.mark.parametrize("cuts", [[0], [1, 70], [64], [3, 3, 40], list(range(1, 70))], ids=str)
def test_split_law(form, cuts):
    inputs, state, resets = make()
    split_law(step(form), inputs, state, cuts, resets=resets)


@every_form
def test_reset_causal_and_rows_laws(form):
    inputs, state, resets = make()
    reset_law(step(form), inputs, state, resets)
    rows_law(step(form), inputs, state, resets=resets)
    causal_law(step(form), inputs, 40)


@every_form
def test_without_decay_it_is_attention(form):
    (q, k, v, g), _, resets = make()
    y, _ = step(form)((q, k, v, 0 * g), None, resets)
    assert_near(y, attention(q, k, v, resets=resets)[0], what="attention")


def test_a_million_decayed_tokens_ago_the_scores_are_still_exact():
    """Sums of decays grow without bound; only their differences matter."""
    (q, k, v, g), *_ = make(20, dtype=torch.float32)
    before = (q[:, :1], k[:, :1], v[:, :1], torch.full_like(g[:, :1], -1e6))
    whole = tuple(torch.cat(pair, 1) for pair in zip(before, (q, k, v, g), strict=True))
    want, _ = step("recurrent")((q, k, v, g), None, None)
    g_late = g.clone()
    g_late[:, 0] = -1e6
    late = (*whole[:3], torch.cat([before[3], g_late], 1))
    assert_near(step("parallel")(late, None, None)[0][:, 1:], want, what="after strong decays")


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (q, k, v, g), state, _ = make()
    with pytest.raises(ValueError, match=r"log_decay \(2, 70\)"):
        forgetting_attention(q, k, v, log_decay=g[..., 0])
    with pytest.raises(ValueError, match="want length int64"):
        forgetting_attention(q, k, v, log_decay=g, state=state._replace(length=state.length[:1]))
    with pytest.raises(ValueError, match="Did you mean 'parallel'"):
        forgetting_attention(q, k, v, log_decay=g, form="paralel")
