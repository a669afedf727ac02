import pytest
import torch
from laws import (
    assert_agree,
    assert_near,
    causal_law,
    forms_law,
    outcome,
    reset_law,
    rows_law,
    split_law,
)
from native import accuracy_law, every_level, every_thread, needs, repeat_law
from torch.nn import functional as F

from stepscan.ops.delta_rule import delta_rule

B, H, K, V = 2, 2, 3, 5
DECAYS = {"none": None, "scalar": (), "vector": (K,)}
REGIMES = {
    "mild": lambda u: -u,
    "zero": lambda u: 0 * u,
    "strong": lambda u: -20 * u,
    "extreme": lambda u: -(10 ** (8 * u - 4)),  # -1e-4 ... -1e4
}
native = needs("delta_rule")
CPU = pytest.param("cpu", torch.float32, marks=native)
EXACT = [(form, torch.float64) for form in ("recurrent", "chunked")]
every_form = pytest.mark.parametrize(("form", "dtype"), [*EXACT, CPU], ids=str)
other_forms = pytest.mark.parametrize(
    ("form", "dtype"), [("chunked", torch.float64), ("chunked", torch.float32), CPU], ids=str
)
every_decay = pytest.mark.parametrize("decay", DECAYS)
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
def test_forms_law(form, dtype, decay, kind, T):
    forms(form, *make(T, decay, kind=kind, dtype=dtype))


@other_forms
@pytest.mark.parametrize("T", [512, 520])
def test_forms_law_around_the_edge_of_a_stretch(form, dtype, T):
    forms(form, *make(T, "scalar", dtype=dtype))


@other_forms
@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.parametrize("kind", ["one", "steps"])
@pytest.mark.parametrize("regime", REGIMES)
def test_forms_law_in_every_regime_of_decay(form, dtype, decay, kind, regime):
    forms(form, *make(decay=decay, kind=kind, regime=regime, dtype=dtype))


@other_forms
@every_decay
def test_identical_keys_at_full_strength(form, dtype, decay):
    inputs, state, resets = make(decay=decay, regime="zero", dtype=dtype)
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).clone()
    inputs["beta"] = torch.full_like(inputs["beta"], 2.0)
    forms(form, inputs, state, resets)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
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
def test_split_law(form, dtype, decay, cuts):
    inputs, state, resets = make(decay=decay, dtype=dtype)
    split_law(step(form, inputs), tuple(inputs.values()), state, cuts, resets=resets)


@every_form
@every_decay
@every_kind
def test_split_reset_causal_and_rows_laws(form, dtype, decay, kind):
    inputs, state, resets = make(decay=decay, kind=kind, dtype=dtype)
    run, xs = step(form, inputs), tuple(inputs.values())
    split_law(run, xs, state, [0, 9, 50], resets=resets)
    reset_law(run, xs, state, resets)
    rows_law(run, xs, state, resets=resets)
    causal_law(run, xs, 40)


@every_form
def test_a_full_write_is_read_back_and_a_second_one_replaces_it(form, dtype):
    k, v = unit(1, 1, 1, K, dtype=dtype), torch.randn(1, 40, 1, V, dtype=dtype)
    k, beta = k.expand(1, 40, 1, K), torch.ones(1, 40, 1, dtype=dtype)
    y, _ = delta_rule(k, k, v, beta=beta, form=form)
    assert_near(y, v, what="read")


@every_form
def test_several_steps_are_tokens_that_are_not_read_and_do_not_decay(form, dtype):
    inputs, state, resets = make(kind="steps", dtype=dtype)
    want, end = step(form, inputs)(inputs.values(), state, resets)
    flat = {name: x.flatten(1, 2) for name, x in inputs.items() if name in ("k", "v", "beta")}
    fill = lambda x: torch.stack([x, *[torch.zeros_like(x)] * 2], 2).flatten(1, 2)  # noqa: E731
    flat |= {"log_decay": fill(inputs["log_decay"]), "resets": fill(resets)}
    q = inputs["q"].repeat_interleave(3, 1)
    y, last = delta_rule(q, **flat, state=state, form=form)
    assert_near((y[:, 2::3], last), (want, end), what="as tokens")


NATIVE_DECAYS = {  # of log decays, from u uniform in [0, 1)
    "gate": lambda u: F.logsigmoid(torch.randn_like(u) + 3),
    "strong": lambda u: -20 * u,
    "extreme": lambda u: -(10 ** (8 * u - 4)),
    "emptied": lambda u: torch.where(u < 0.05, -1e4, -1e-3),
    "emptied more": lambda u: torch.where(u < 0.05, -1e6, -1e-3),
    "never": lambda u: torch.where(u < 0.05, -torch.inf, -1e-3),
    "zero": lambda u: 0 * u,
}


def native_inputs(T, heads, keys, values, *, decay="scalar", regime="gate", steps=1, apart=False):
    """As `make`, of any size."""
    many = () if steps == 1 else (steps,)
    u = torch.rand(B, T, heads, *{"scalar": (), "vector": (keys,)}[decay])
    k = unit(B, T, *many, heads, keys, dtype=torch.float32)
    inputs = {
        "q": torch.randn(B, T, heads, keys),
        "k": k,
        "v": torch.randn(B, T, *many, heads, values),
        "beta": torch.rand(B, T, *many, heads) * (1 if apart else 2),
        "log_decay": NATIVE_DECAYS[regime](u),
    }
    if apart:
        inputs["erase"] = k * torch.rand_like(k)
    return inputs, torch.randn(B, heads, keys, values), torch.rand(B, T) < 0.05


def native_laws(inputs, state, resets):
    run = lambda form: step(form, inputs)  # noqa: E731
    accuracy_law(run, tuple(inputs.values()), state, resets=resets)
    repeat_law(run, tuple(inputs.values()), state, resets=resets)


@native
@every_level
@every_thread
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((1, 1, 1, 1), {}),
        ((9, 1, 65, 33), {"decay": "vector", "apart": True}),
        ((33, 3, 16, 40), {"steps": 2, "regime": "extreme"}),
        ((50, 2, 20, 7), {"decay": "vector", "steps": 3, "apart": True, "regime": "strong"}),
    ],
    ids=str,
)
def test_native_form_on_poisoned_memory(level, threads, sizes, options, poisoned):
    native_laws(*native_inputs(*sizes, **options))


@native
@pytest.mark.parametrize("regime", NATIVE_DECAYS)
@pytest.mark.parametrize("decay", ["scalar", "vector"])
def test_native_form_in_every_regime_of_decay(regime, decay, poisoned):
    native_laws(*native_inputs(100, 1, 20, 18, decay=decay, regime=regime))


@native
@pytest.mark.parametrize(
    "sizes", [(2, 1, 256, 300), (70, 1, 130, 70), (40, 2, 128, 4), (40, 5, 3, 64)], ids=str
)
def test_native_form_at_odd_head_sizes(sizes, poisoned):
    native_laws(*native_inputs(*sizes))
    native_laws(*native_inputs(*sizes, decay="vector", steps=2))


@native
@pytest.mark.parametrize("steps", [5, 12, 40])
def test_native_form_of_many_steps(steps, poisoned):
    native_laws(*native_inputs(12, 1, 16, 8, decay="vector", steps=steps))


@native
@pytest.mark.parametrize("T", [1, 5, 8, 9, 100])
@every_kind
def test_without_gradients_the_native_form_gives_the_same(T, kind):
    inputs, state, resets = make(T, "vector", kind=kind, dtype=torch.float32)
    with torch.no_grad():
        want = step("recurrent", inputs)(inputs.values(), state, resets)
        got = step("cpu", inputs)(inputs.values(), state, resets)
    assert_near(got, want, what="no gradients")


@every_form
def test_any_strides_will_do_and_inputs_are_kept(form, dtype):
    inputs, state, resets = make(40, kind="both", dtype=dtype)
    strided = tuple(x.mT.contiguous().mT for x in (*inputs.values(), state))
    assert not any(x.is_contiguous() for x in strided)
    before = [x.clone() for x in strided]
    want = outcome(
        lambda xs, s: step("recurrent", inputs)(xs, s, resets), strided[:-1], strided[-1]
    )
    got = outcome(lambda xs, s: step(form, inputs)(xs, s, resets), strided[:-1], strided[-1])
    assert_agree(got, want, what="strides")
    step(form, inputs)(strided[:-1], strided[-1], resets)
    assert all(map(torch.equal, strided, before))


@native
@pytest.mark.plain
@pytest.mark.parametrize("kind", ["one", "both"])
def test_native_form_is_a_whole_operator(kind):
    inputs, state, resets = make(9, kind=kind, dtype=torch.float32)
    one = {name: x[:, :, None] for name, x in inputs.items() if name in ("k", "v", "beta")}
    wide = {"erase": None} | inputs | (one if kind == "one" else {}) | {"state": state}
    wide = {name: x if x is None else x.requires_grad_() for name, x in wide.items()}
    names = ("q", "k", "v", "beta", "log_decay", "erase", "state")
    args = (*(wide[name] for name in names), resets, 16)
    torch.library.opcheck(torch.ops.stepscan.delta_rule.default, args)
    leaf = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    compiled = torch.compile(delta_rule, backend="eager", fullgraph=True)
    assert_near(compiled(**leaf), delta_rule(**leaf), what="compiled")
    y, _ = delta_rule(**leaf)
    (once,) = torch.autograd.grad(y.sum(), leaf["q"], create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        once.sum().backward()


@native
def test_a_loss_of_the_state_alone_or_of_y_alone_has_its_gradients():
    inputs, state, resets = make(40, dtype=torch.float32)
    for part in (0, 1):
        grads = []
        for form in ("recurrent", "cpu"):
            leaf = [x.clone().requires_grad_() for x in (*inputs.values(), state)]
            loss = step(form, inputs)(leaf[:-1], leaf[-1], resets)[part].square().sum()
            loss.backward()
            grads.append([torch.zeros_like(x) if x.grad is None else x.grad for x in leaf])
        assert_near(grads[1], grads[0], what=f"part {part}")


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
    with pytest.raises(ValueError, match="use another form"):
        delta_rule(**inputs, form="cpu")
    with pytest.raises(ValueError, match="Did you mean 'chunked'"):
        delta_rule(**inputs, form="chunk")
