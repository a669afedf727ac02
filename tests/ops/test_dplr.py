import pytest
import torch
from laws import assert_agree, causal_law, forms_law, outcome, reset_law, rows_law, split_law
from torch.nn import functional as F

from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.dplr import FORMS, dplr

B, H, K, V = 2, 2, 3, 5
DECAYS = {"none": None, "scalar": (), "vector": (K,)}
REGIMES = {
    "mild": lambda u: -0.6 * u,
    "zero": lambda u: 0 * u,
    "strong": lambda u: -20 * u,
    "extreme": lambda u: -(10 ** (8 * u - 4)),  # -1e-4 ... -1e4
}
every_form = pytest.mark.parametrize("form", FORMS)
other_forms = pytest.mark.parametrize("form", [f for f in FORMS if f != "recurrent"])
every_decay = pytest.mark.parametrize("decay", DECAYS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
either = pytest.mark.parametrize("undecayed", [False, True], ids=["decayed", "undecayed"])
NAMES = ("q", "k", "v", "a", "b", "log_decay")


def make(T=70, decay="vector", regime="mild", undecayed=False, dtype=torch.float64):
    """Transitions as in RWKV-7: what is erased is a key and a part of it."""
    q, k, v = (torch.randn(B, T, H, d, dtype=dtype) for d in (K, K, V))
    key = F.normalize(torch.randn(B, T, H, K, dtype=dtype), dim=-1)
    g = ()
    if decay != "none":
        g = (REGIMES[regime](torch.rand(B, T, H, *DECAYS[decay], dtype=dtype)),)
    a, b = -key, key * torch.rand_like(key if decay == "vector" else key[..., :1])
    if undecayed and regime in ("strong", "extreme"):  # or what is forgotten comes back negative
        b = b * g[0].reshape(B, T, H, -1).exp()
    return (q, k, v, a, b, *g), torch.randn(B, H, K, V, dtype=dtype), torch.rand(B, T) < 0.05


def step(form, undecayed=False):
    def run(inputs, state, resets):
        named = dict(zip(NAMES, inputs, strict=False))
        return dplr(**named, undecayed=undecayed, state=state, resets=resets, form=form)

    return run


@other_forms
@every_decay
@either
@pytest.mark.parametrize("T", [0, 1, 7, 9, 31, 33, 70])
@every_dtype
def test_forms_law(form, decay, undecayed, T, dtype):
    inputs, state, resets = make(T, decay, undecayed=undecayed, dtype=dtype)
    run, definition = (step(f, undecayed) for f in (form, "recurrent"))
    forms_law(run, definition, inputs, state, resets=resets)


@other_forms
@pytest.mark.parametrize("decay", ["scalar", "vector"])
@either
@pytest.mark.parametrize("regime", REGIMES)
@every_dtype
def test_forms_law_in_every_regime_of_decay(form, decay, undecayed, regime, dtype):
    inputs, state, resets = make(decay=decay, regime=regime, undecayed=undecayed, dtype=dtype)
    run, definition = (step(f, undecayed) for f in (form, "recurrent"))
    forms_law(run, definition, inputs, state, resets=resets)


@every_form
@every_decay
@either
def test_gradcheck(form, decay, undecayed):
    inputs, state, _ = make(35, decay)  # some tokens into the second chunk
    leaf = [x[:1].clone().requires_grad_() for x in (*inputs, state)]
    resets = torch.zeros(1, 35, dtype=torch.bool)
    resets[0, 7] = True
    run = lambda *x: step(form, undecayed)(x[:-1], x[-1], resets)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


@every_form
@every_decay
@either
@pytest.mark.parametrize("cuts", [[0], [1, 70], [32, 64], [3, 3, 40], list(range(1, 70))], ids=str)
def test_split_law(form, decay, undecayed, cuts):
    inputs, state, resets = make(decay=decay)
    split_law(step(form, undecayed), inputs, state, cuts, resets=resets)


@every_form
@every_decay
@either
def test_reset_causal_and_rows_laws(form, decay, undecayed):
    inputs, state, resets = make(decay=decay)
    reset_law(step(form, undecayed), inputs, state, resets)
    rows_law(step(form, undecayed), inputs, state, resets=resets)
    causal_law(step(form, undecayed), inputs, 40)


@every_form
@every_decay
@every_dtype
def test_the_delta_rule_is_a_special_case(form, decay, dtype):
    (q, k, v, a, _, *g), state, resets = make(decay=decay, dtype=dtype)
    key, beta = -a, 2 * torch.rand(B, k.shape[1], H, dtype=dtype)

    def as_dplr(inputs, state):
        q, key, v, beta, *g = inputs
        write = beta[..., None] * key
        return step(form)((q, write, v, key, -write, *g), state, resets)

    def as_delta_rule(inputs, state):
        q, key, v, beta, *g = inputs
        g = g[0] if g else None
        return delta_rule(q, key, v, beta=beta, log_decay=g, state=state, resets=resets, form=form)

    inputs = (q, key, v, beta, *g)
    want, got = (outcome(run, inputs, state) for run in (as_delta_rule, as_dplr))
    assert_agree(got, want, what="special case")


def test_half_precision_inputs_keep_a_wide_state():
    inputs, *_ = make(dtype=torch.bfloat16)
    y, state = step("auto")(inputs, None, None)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    inputs, state, resets = make()
    named = dict(zip(NAMES, inputs, strict=True))
    with pytest.raises(ValueError, match=r"a \(2, 70, 2, 2\)"):
        dplr(**named | {"a": named["a"][..., :2]})
    with pytest.raises(ValueError, match=r"log_decay \(2, 70\)"):
        dplr(**named | {"log_decay": named["log_decay"][..., 0, 0]})
    with pytest.raises(ValueError, match=r"state: want \(2, 2, 3, 5\), got \(2, 2, 3\)"):
        dplr(**named, state=state[..., 0])
    with pytest.raises(ValueError, match=r"resets: want bool \(2, 70\), got torch.int64"):
        dplr(**named, resets=resets.long())
    with pytest.raises(ValueError, match="Did you mean 'chunked'"):
        dplr(**named, form="chunk")
