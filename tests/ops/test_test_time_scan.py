"""Memories that learn at test time: every rule through the laws, the gradients, the limits."""

from itertools import pairwise

import pytest
import torch
from laws import assert_agree, causal_law, forms_law, outcome, reset_law, rows_law, split_law
from torch.func import grad, vmap
from torch.nn import functional as F

from stepscan.ops import memory_network as network
from stepscan.ops import test_time_scan as ops
from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.memory_network import LINKS, LOSSES, Rule

B, H, K, V = 2, 2, 8, 8
RULES = {
    "online": {},
    "chunk": {"chunk": 4},
    "titans": {"chunk": 4, "parts": "momentum log_decay norm", "depth": 2},
    "ttt": {"chunk": 4, "parts": "scale norm", "depth": 2, "bias": True},
    "dot": {"loss": "dot", "chunk": 3},
    "kl": {"loss": "kl", "chunk": 3, "parts": "log_decay"},
    "moneta": {"loss": "lp", "retention": "q_norm", "chunk": 4, "parts": "log_decay", "depth": 2},
    "yaad": {"loss": "huber", "chunk": 4, "parts": "log_decay threshold norm", "depth": 2},
    "memora": {"retention": "softmax", "chunk": 4, "parts": "log_decay", "depth": 2},
    "elastic": {"retention": "elastic", "chunk": 4, "parts": "momentum log_decay"},
    "window": {"window": 3, "chunk": 4, "parts": "weight log_decay"},
    "long window": {"window": 7, "chunk": 2, "loss": "huber", "parts": "weight threshold"},
    "atlas": {
        "window": 3,
        "chunk": 4,
        "orthogonalize": 5,
        "parts": "weight momentum log_decay",
        "depth": 2,
    },
    "muon": {"orthogonalize": 5, "chunk": 3},
}
every_rule = pytest.mark.parametrize("name", RULES)
every_form = pytest.mark.parametrize("form", ops.FORMS)


def make(name, T=10, dtype=torch.float64, values=V):
    """A step over (q, k, v, rate, parts ...), its inputs, a state from some tokens, resets."""
    options = dict(RULES[name])
    parts, depth = options.pop("parts", "").split(), options.pop("depth", 1)
    bias, rule = options.pop("bias", False), Rule(**options)
    randn = lambda *size: torch.randn(*size, dtype=dtype)  # noqa: E731
    sizes = [K, *[6] * (depth - 1), values]
    init = tuple(0.5 * randn(H, a + bias, b) for a, b in pairwise(sizes))
    norm = (1 + 0.1 * randn(H, values), 0.1 * randn(H, values)) if "norm" in parts else None
    names = [p for p in parts if p != "norm"]

    def tokens(T):
        rand = lambda: torch.rand(B, T, H, dtype=dtype)  # noqa: E731
        made = {"log_decay": -0.3 * rand(), "momentum": rand(), "weight": rand()}
        made |= {"threshold": 0.5 + rand(), "scale": rand()}
        qkv = randn(B, T, H, K), F.normalize(randn(B, T, H, K), dim=-1), randn(B, T, H, values)
        return (*qkv, 0.2 * rand(), *(made[n] for n in names))

    def step(form="auto", init=init, norm=norm):
        def run(inputs, state, resets):
            q, k, v, rate, *more = inputs
            more = dict(zip(names, more, strict=True))
            return ops.test_time_scan(
                q, k, v, init=init, rate=rate, rule=rule, norm=norm, **more, state=state,
                resets=resets, form=form,
            )  # fmt: skip

        return run

    early = torch.zeros(B, 6, dtype=torch.bool)
    early[0, 5] = True  # so the rows stand at different places of their chunks
    _, state = step()(tokens(6), None, early)
    state = state._replace(**{n: t.detach() for n, t in state._asdict().items()})
    return step, tokens(T), state, torch.rand(B, T) < 0.2, (*init, *(norm or ()))


# Newton-Schulz lifts the rounding of float32 about 500 times, and its derivative again
exact = [(name, torch.float64) for name in RULES]
single = [(name, torch.float32) for name, rule in RULES.items() if "orthogonalize" not in rule]


@pytest.mark.parametrize(("name", "dtype"), [*exact, *single], ids=str)
@pytest.mark.parametrize("T", [1, 10])
def test_forms_law(name, T, dtype):
    step, inputs, state, resets, _ = make(name, T, dtype)
    forms_law(step("chunked"), step("recurrent"), inputs, state, resets=resets)
    forms_law(step("chunked"), step("recurrent"), inputs, state)
    forms_law(step("chunked"), step("recurrent"), inputs, None, resets=resets)


@every_rule
@every_form
def test_split_reset_rows_and_causal_laws(name, form):
    step, inputs, state, resets, _ = make(name)
    for cuts in ([0], [3, 3, 8]):
        split_law(step(form), inputs, state, cuts, resets=resets)
    reset_law(step(form), inputs, state, resets)
    rows_law(step(form), inputs, state, resets=resets)
    causal_law(step(form), inputs, 6)


@every_rule
@every_form
def test_gradcheck(name, form):
    step, inputs, state, resets, weights = make(name, 7)
    leaves = [x[:1].clone().requires_grad_() for x in inputs]
    leaves += [x.clone().requires_grad_() for x in weights]
    n, state = len(inputs), type(state)(*(x[:1] for x in state))

    def run(*leaves):
        layers = leaves[n:]
        norm = layers[-2:] if layers[-1].ndim == 2 else None
        init = layers[:-2] if norm else layers
        y, end = step(form, init, norm)(leaves[:n], state, resets[:1])
        return y, end.start, end.now

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def _loss(name, rule):
    if name == "lp":  # its antiderivative is not written with plain functions
        return lambda y, v, d: (y - v).abs().pow(rule.power).sum()
    return {
        "l2": lambda y, v, d: 0.5 * (y - v).square().sum(),
        "dot": lambda y, v, d: -(y * v).sum(),
        "huber": lambda y, v, d: torch.where(
            (y - v).norm() <= d, 0.5 * (y - v).square().sum(), d * (y - v).norm() - d * d / 2
        ),
        "kl": lambda y, v, d: (v.softmax(-1) * (v.log_softmax(-1) - y.log_softmax(-1))).sum(),
    }[name]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("normed", [False, True])
def test_the_gradients_are_those_of_the_loss(loss, depth, normed):
    rule, sizes = Rule(loss=loss), [5, *[6] * (depth - 1), 4]
    layers = [torch.randn(a + 1, b).double() for a, b in pairwise(sizes)]
    norm = (torch.randn(1, 4).double(), torch.randn(1, 4).double()) if normed else None
    memory = network.Memory(tuple(w[None] for w in layers), norm, rule)
    k, v = torch.randn(9, 5).double(), 3 * torch.randn(9, 4).double()
    weight, threshold = torch.rand(9).double(), 2 + torch.rand(9).double()

    def cost(layers, k, v, weight, threshold):
        x = k
        for n, W in enumerate(layers):
            x = torch.cat([F.gelu(x, approximate="tanh") if n else x, torch.ones(1).double()]) @ W
        if norm is not None:
            x = k[:4] + F.layer_norm(x, (4,), norm[0][0], norm[1][0], eps=1e-6)
        return weight * _loss(loss, rule)(x, v, threshold)

    want = vmap(grad(cost), (None, 0, 0, 0, 0))(layers, k, v, weight, threshold)
    heard = (k[None, None], v[None, None], weight[None, None], threshold[None, None])
    got = network.gradients(heard, [w[None, None] for w in layers], memory)
    for (x, error), g in zip(got, want, strict=True):
        mine = torch.einsum("ei,eo->eio", x[0, 0], error[0, 0])
        if loss == "lp":  # equal where the errors are not small
            assert F.cosine_similarity(mine.flatten(1), g.flatten(1)).min() > 0.999
        else:
            torch.testing.assert_close(mine, g, atol=1e-9, rtol=1e-9)


@every_form
@pytest.mark.parametrize("chunk", [1, 4])
def test_chunk_one_of_a_linear_memory_is_the_delta_rule(form, chunk):
    """And of longer chunks the same with the errors of the chunk's start, in plain loops."""
    q, k, v = (torch.randn(B, 21, H, 5).double() for _ in range(3))
    k, rate, g = F.normalize(k, dim=-1), torch.rand(B, 21, H).double(), -torch.rand(B, 21, H)
    zero = torch.zeros(H, 5, 5).double()
    inputs, resets = (q, k, v, rate), torch.rand(B, 21) < 0.1

    def learned(x, state):
        q, k, v, rate = x
        y, end = ops.test_time_scan(
            q, k, v, init=[zero], rate=rate, rule=Rule(chunk=chunk), resets=resets, form=form
        )
        return y, end.now.unflatten(-1, (5, 5))

    if chunk == 1:
        rule = lambda x, state: delta_rule(*x[:3], beta=x[3], resets=resets)  # noqa: E731
        assert_agree(outcome(learned, inputs, None), outcome(rule, inputs, None), what="delta")
    y, _ = ops.test_time_scan(
        q, k, v, init=[zero], rate=rate, rule=Rule(chunk=chunk), log_decay=g.double(), form=form
    )
    for b in range(B):
        W = start = torch.zeros(H, 5, 5).double()
        for t in range(21):
            start = W if t % chunk == 0 else start
            error = torch.einsum("hio,hi->ho", start, k[b, t]) - v[b, t]
            step = rate[b, t][:, None, None] * torch.einsum("hi,ho->hio", k[b, t], error)
            W = g[b, t].double().exp()[:, None, None] * W - step
            torch.testing.assert_close(y[b, t], torch.einsum("hio,hi->ho", W, q[b, t]))


def test_no_momentum_is_a_momentum_of_zero_and_a_window_is_something():
    _, (q, k, v, rate, _, _, decay), _, resets, _ = make("atlas")
    plain = torch.zeros(H, K, V).double()
    rule = {"init": [plain], "rate": rate, "log_decay": decay, "resets": resets}
    want, _ = ops.test_time_scan(q, k, v, rule=Rule(chunk=4), **rule)
    got, _ = ops.test_time_scan(
        q, k, v, rule=Rule(chunk=4), momentum=torch.zeros_like(rate), **rule
    )
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    wide, _ = ops.test_time_scan(q, k, v, rule=Rule(chunk=4, window=2), **rule)
    assert (wide - want).abs().max() > 1e-3


@pytest.mark.parametrize(
    "bounds",
    [
        (0.68, 1.14),
        pytest.param(
            (0.7, 1.2),
            marks=pytest.mark.xfail(strict=False, reason="0.682 to 1.134: Muon's own coefficients"),
        ),
    ],
    ids=str,
)
def test_newton_schulz_brings_singular_values_near_one(bounds):
    for shape in ((16, 16), (16, 64), (48, 8)):
        x = torch.randn(100, *shape).double()
        before = torch.linalg.svdvals(x)
        x = x[before[:, -1] / x.norm(dim=(1, 2)) > 0.01]  # what five steps can lift
        assert len(x) > 20
        values = torch.linalg.svdvals(network.newton_schulz(x, 5))
        assert bounds[0] <= values.min()
        assert values.max() <= bounds[1]


def test_links_keep_their_constraints():
    """Positive and summing to one; zero below the threshold; the published norm."""
    for name in ("softmax", "q_norm", "elastic"):
        rule = Rule(retention=name, sparsity=0.1)
        _, (q, k, v, rate), *_ = make("online", T=40)
        init = torch.randn(H, K, V).double()
        _, state = ops.test_time_scan(q, k, v, init=[init], rate=rate, rule=rule)
        A = state.now.unflatten(-1, (K, V))
        W = LINKS[name](A, rule)
        if name == "softmax":
            assert (W > 0).all()
            torch.testing.assert_close(W.sum(-2), torch.ones(B, H, V).double())
        elif name == "elastic":
            assert torch.equal(W == 0, A.abs() <= 0.1)
        else:
            size = A.abs().pow(4).sum((-2, -1), keepdim=True) ** 0.25
            torch.testing.assert_close(W, A / size**2)
        y = torch.einsum("bhio,bhi->bho", W, q[:, -1])
        torch.testing.assert_close(
            ops.test_time_scan(q, k, v, init=[init], rate=rate, rule=rule)[0][:, -1], y
        )


def test_softmax_retention_is_the_multiplicative_update_of_memora():
    """W = softmax(a log W - rate grad), token by token."""
    step, (q, k, v, rate), *_ = make("online", T=8)
    init, g = torch.randn(H, K, V).double(), -torch.rand(B, 8, H).double()
    y, _ = ops.test_time_scan(
        q, k, v, init=[init], rate=rate, log_decay=g, rule=Rule(retention="softmax")
    )
    W = init.softmax(-2).expand(B, -1, -1, -1)
    for t in range(8):
        error = torch.einsum("bhio,bhi->bho", W, k[:, t]) - v[:, t]
        step = rate[:, t, :, None, None] * torch.einsum("bhi,bho->bhio", k[:, t], error)
        W = (g[:, t, :, None, None].exp() * W.log() - step).softmax(-2)
        torch.testing.assert_close(y[:, t], torch.einsum("bhio,bhi->bho", W, q[:, t]))


def test_half_precision_inputs_keep_a_wide_state():
    step, inputs, *_ = make("titans", dtype=torch.bfloat16)
    y, state = step()(inputs, None, None)
    assert y.dtype == torch.bfloat16
    assert {t.dtype for t in state} == {torch.float32, torch.int64}


@pytest.mark.plain
def test_errors_say_what_to_fix():
    _, (q, k, v, rate), state, *_ = make("online")
    init, rule = [torch.zeros(H, K, V).double()], Rule()
    run = lambda **new: ops.test_time_scan(  # noqa: E731
        **{"q": q, "k": k, "v": v, "init": init, "rate": rate, "rule": rule} | new
    )
    with pytest.raises(ValueError, match=r"init \[\(2, 6, 8\)\]"):
        run(init=[torch.zeros(H, 6, V)])
    with pytest.raises(ValueError, match=r"want rate \(2, 10, 2\), got \(2, 10\)"):
        run(rate=rate[..., 0])
    with pytest.raises(ValueError, match='want a threshold with the loss "huber"'):
        run(threshold=rate)
    with pytest.raises(ValueError, match=r"norm \[\(2, 7\), \(2, 7\)\]"):
        run(norm=(torch.zeros(H, 7), torch.zeros(H, 7)))
    with pytest.raises(ValueError, match=r"state: want \(2, 2, 64\), got \(2, 2, 3\)"):
        run(state=state._replace(now=state.now[..., :3]))
    with pytest.raises(ValueError, match="Did you mean 'chunked'"):
        run(form="chunk")
    with pytest.raises(ValueError, match="Did you mean 'huber'"):
        Rule(loss="hubber")
    with pytest.raises(ValueError, match="chunk=0"):
        Rule(chunk=0)
    with pytest.raises(ValueError, match=r"power=0\.5"):
        Rule(power=0.5)
