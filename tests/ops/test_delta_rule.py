import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law
from torch.nn import functional as F

from stepscan.ops.delta_rule import FORMS, delta_rule

B, H, K, V = 2, 2, 3, 5
DECAYS = {"none": None, "scalar": (), "vector": (K,)}
REGIMES = {
    "mild": lambda u: -u,
    "zero": lambda u: 0 * u,
    "strong": lambda u: -20 * u,
    "extreme": lambda u: -(10 ** (8 * u - 4)),  # -1e-4 ... -1e4
}
every_form = pytest.mark.parametrize("form", FORMS)
other_forms = pytest.mark.parametrize("form", [f for f in FORMS if f != "recurrent"])
every_decay = pytest.mark.parametrize("decay", DECAYS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
KINDS = {"one": ((), False), "steps": ((3,), False), "erase": ((), True), "both": ((2,), True)}
every_kind = pytest.mark.parametrize("kind", KINDS)


def unit(*shape, dtype):
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def make(T=70, decay="vector", regime="mild", kind="one", dtype=torch.float64):
    steps, apart = KINDS[kind]
    q, v = torch.randn(B, T, H, K, dtype=dtype), torch.randn(B, T, *steps, H, V, dtype=dtype)
    k = unit(B, T, *steps, H, K, dtype=dtype)
    inputs = {"q": q, "k": k, "v": v, "beta": 2 * torch.rand(B, T, *steps, H, dtype=dtype)}
    if decay != "none":
        u = torch.rand(B, T, H, *DECAYS[decay], dtype=dtype)
        inputs["log_decay"] = REGIMES[regime](u)
    if apart:  # what comparable models erase: the key, channels of it dampened
        inputs["erase"] = k * torch.rand_like(k)
        inputs["beta"] = inputs["beta"] / 2
    return inputs, torch.randn(B, H, K, V, dtype=dtype), torch.rand(B, T) < 0.05


def step(form, names):
    def run(inputs, state, resets):
        named = dict(zip(names, inputs, strict=True))
        return delta_rule(**named, state=state, resets=resets, form=form)

    return run


def forms(form, inputs, state, resets):
    want, got = step("recurrent", inputs), step(form, inputs)
    forms_law(got, want, tuple(inputs.values()), state, resets=resets)


@other_forms
@every_decay
@every_kind
@pytest.mark.parametrize("T", [0, 1, 7, 9, 31, 33, 70])
@every_dtype
def test_forms_law(form, decay, kind, T, dtype):
    forms(form, *make(T, decay, kind=kind, dtype=dtype))


@other_forms
@pytest.mark.parametrize("T", [512, 520])
def test_forms_law_around_the_edge_of_a_stretch(form, T):
    forms(form, *make(T, "scalar"))


@other_forms
@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.parametrize("kind", ["one", "steps"])
@pytest.mark.parametrize("regime", REGIMES)
@every_dtype
def test_forms_law_in_every_regime_of_decay(form, decay, kind, regime, dtype):
    forms(form, *make(decay=decay, kind=kind, regime=regime, dtype=dtype))


@other_forms
@every_decay
def test_identical_keys_at_full_strength(form, decay):
    inputs, state, resets = make(decay=decay, regime="zero")
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).clone()
    inputs["beta"] = torch.full_like(inputs["beta"], 2.0)
    forms(form, inputs, state, resets)


@every_form
@every_decay
@every_kind
def test_gradcheck(form, decay, kind):
    inputs, state, _ = make(35, decay, kind=kind)  # some tokens into the second chunk
    leaf = [x[:1].clone().requires_grad_() for x in (*inputs.values(), state)]
    resets = torch.zeros(1, 35, dtype=torch.bool)
    resets[0, 7] = True
    run = lambda *x: step(form, inputs)(x[:-1], x[-1], resets)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


@every_form
@every_decay
@pytest.mark.parametrize("cuts", [[0], [1, 70], [32, 64], [3, 3, 40], list(range(1, 70))], ids=str)
def test_split_law(form, decay, cuts):
    inputs, state, resets = make(decay=decay)
    split_law(step(form, inputs), tuple(inputs.values()), state, cuts, resets=resets)


@every_form
@every_decay
@every_kind
def test_split_reset_causal_and_rows_laws(form, decay, kind):
    inputs, state, resets = make(decay=decay, kind=kind)
    run, xs = step(form, inputs), tuple(inputs.values())
    split_law(run, xs, state, [0, 9, 50], resets=resets)
    reset_law(run, xs, state, resets)
    rows_law(run, xs, state, resets=resets)
    causal_law(run, xs, 40)


@every_form
def test_a_full_write_is_read_back_and_a_second_one_replaces_it(form):
    k, v = unit(1, 1, 1, K, dtype=torch.float64), torch.randn(1, 40, 1, V, dtype=torch.float64)
    k, beta = k.expand(1, 40, 1, K), torch.ones(1, 40, 1, dtype=torch.float64)
    y, _ = delta_rule(k, k, v, beta=beta, form=form)
    assert_near(y, v, what="read")


@every_form
def test_several_steps_are_tokens_that_are_not_read_and_do_not_decay(form):
    inputs, state, resets = make(kind="steps")
    want, end = step(form, inputs)(inputs.values(), state, resets)
    flat = {name: x.flatten(1, 2) for name, x in inputs.items() if name in ("k", "v", "beta")}
    fill = lambda x: torch.stack([x, *[torch.zeros_like(x)] * 2], 2).flatten(1, 2)  # noqa: E731
    flat |= {"log_decay": fill(inputs["log_decay"]), "resets": fill(resets)}
    q = inputs["q"].repeat_interleave(3, 1)
    y, last = delta_rule(q, **flat, state=state, form=form)
    assert_near((y[:, 2::3], last), (want, end), what="as tokens")


def test_half_precision_inputs_keep_a_wide_state():
    inputs, *_ = make(dtype=torch.bfloat16)
    y, state = step("auto", inputs)(inputs.values(), None, None)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    inputs, state, resets = make()
    for name, bad, match in (
        ("k", lambda k: k[..., :2], r"got q \(2, 70, 2, 3\), k \(2, 70, 2, 2\)"),
        ("v", lambda v: v[:, :, None], r"v \(2, 70, 1, 2, 5\)"),
        ("beta", lambda x: x[..., 0], r"beta \(2, 70\)"),
        ("log_decay", lambda g: g[..., 0, 0], r"log_decay \(2, 70\)"),
    ):
        with pytest.raises(ValueError, match=match):
            delta_rule(**inputs | {name: bad(inputs[name])})
    with pytest.raises(ValueError, match=r"erase \(2, 70, 2, 5\)"):
        delta_rule(**inputs, erase=inputs["v"])
    with pytest.raises(ValueError, match=r"state: want \(2, 2, 3, 5\), got \(2, 2, 3\)"):
        delta_rule(**inputs, state=state[..., 0])
    with pytest.raises(ValueError, match=r"resets: want bool \(2, 70\), got torch.int64"):
        delta_rule(**inputs, resets=resets.long())
    with pytest.raises(ValueError, match="Did you mean 'chunked'"):
        delta_rule(**inputs, form="chunk")
