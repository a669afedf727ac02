"""TTT, Titans, Miras, ATLAS and test-time regression: equations, laws of options, what they do."""

import numpy as np
import pytest
import torch
from laws import causal_law, live_law, reset_law, rows_law, split_law
from torch.func import grad
from torch.nn import functional as F

from stepscan import state as states
from stepscan.layers.polynomial import Polynomial
from stepscan.mixers import MIXERS
from stepscan.mixers import test_time_regression as regression
from stepscan.ops import test_time_scan as ops
from stepscan.ops.local_regression import local_regression
from stepscan.ops.memory_network import Rule
from stepscan.ops.ridge_regression import ridge_regression

WIDTH, T = 16, 20
OPTIONS = {
    "ttt mlp": ("ttt", {"memory": "mlp", "chunk": 4, "gate": True}),
    "ttt online": ("ttt", {"chunk": 1}),
    "titans matrix": ("titans", {"depth": 1, "chunk": 5}),
    "moneta": ("miras", {"preset": "moneta"}),
    "memora": ("miras", {"preset": "memora", "chunk": 4}),
    "omega": ("atlas", {"muon_steps": 0, "degree": 3, "context": 6, "chunk": 4}),
    "atlas matrix": ("atlas", {"degree": 1, "depth": 1, "context": 1}),
    "polynomial": ("test_time_regression", {"features": "polynomial", "solver": "sgd"}),
    "elu": ("test_time_regression", {"features": "elu", "weights": "learned"}),
    **{
        name: ("test_time_regression", {"solver": c.solver, "weights": c.weights})
        for name, c in regression.PRESETS.items()
    },
}


@pytest.mark.parametrize("option", OPTIONS)
def test_laws_hold_for_every_option(option):
    name, options = OPTIONS[option]
    config = MIXERS[name](**options)
    mixer, x = config.build(WIDTH).double(), torch.randn(3, T, WIDTH).double()
    state, resets, params = states.detach(mixer(x)[1]), torch.rand(3, T) < 0.15, mixer.parameters()
    step, params = lambda xs, state, resets: mixer(xs[0], state, resets), list(params)
    split_law(step, (x,), state, [0, 3, 4, 11], resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)
    rows_law(step, (x,), state, resets=resets, params=params)
    causal_law(step, (x,), 9)
    live_law(config.build(WIDTH), x.float())


def network(layers, norm, x):
    z = x
    for n, W in enumerate(layers):
        z = F.gelu(z, approximate="tanh") if n else z
        z = (F.pad(z, (0, 1), value=1.0) if len(W) > len(z) else z) @ W
    return x[: len(z)] + norm[0] * F.layer_norm(z, z.shape, eps=1e-6) + norm[1]


def muon(S):
    x = S / S.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
    return x


def oracle(mixer, x):  # noqa: PLR0915 - four papers
    """The equations for one sequence, head by head and token by token, gradients by autograd."""
    config, name = mixer.config, mixer.config.name
    (q, k, v), gates, _ = mixer.inputs(x[None])
    q, k, v = (part[0] for part in (q, k, v))
    gates = [g[0].sigmoid() for g in gates]
    size, heads = q.shape[-1], []
    if name == "ttt":
        angle = (
            torch.arange(len(x))[:, None]
            % config.chunk
            * 10000.0 ** -(torch.arange(size // 2).double() / (size // 2))
        )
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        pairs = [torch.complex(*p.chunk(2, -1)) * turn for p in (q, k)]
        q, k = (torch.cat([p.real, p.imag], -1) for p in pairs)
    if name == "atlas":
        q, k = mixer.features(q), mixer.features(k)
    for h in range(config.heads):
        A = start = [W[h] for W in mixer.memory.layers]
        norm = mixer.memory.norm_weight[h], mixer.memory.norm_bias[h]
        S, ys = [torch.zeros_like(a) for a in A], []

        def link(layers):
            if getattr(config, "preset", "") == "moneta":
                return [a / (a**4).sum().sqrt() for a in layers]
            if getattr(config, "preset", "") == "memora":
                return [a.softmax(0) for a in layers]
            return layers

        def loss(layers, i, h=h, norm=norm):
            e = network(layers, norm, k[i, h]) - v[i, h]
            if getattr(config, "preset", "") == "moneta":  # its antiderivative by its derivative
                slope = 3 * torch.tanh(10 * e) * (e * e + 1e-6)
                return (e * slope.detach()).sum()
            if getattr(config, "preset", "") == "yaad":
                bound = F.softplus(torch.logit(gates[2][i, h]))
                far = bound * (e * e).sum().sqrt() - bound**2 / 2
                return torch.where(e.norm() > bound, far, 0.5 * (e * e).sum())
            return 0.5 * (e * e).sum()

        for t in range(len(x)):
            at = t % config.chunk
            start = A if at == 0 else start
            G = grad(loss)(link(start), t)
            if name == "ttt":
                if at == 0:
                    S = [torch.zeros_like(a) for a in A]
                rate = mixer.base_rate / size * gates[0][t, h]
                S = [s + rate * g for s, g in zip(S, G, strict=True)]
                scale = max(0.0, 1 / (at + 1) + mixer.place[at].item())
                A = [a - scale * s for a, s in zip(start, S, strict=True)]
            else:
                rate = config.max_rate * gates[0][t, h]
                if name == "atlas":
                    window = range(max(0, t - config.context + 1), t + 1)
                    each = [[gates[3][i, h] * g for g in grad(loss)(start, i)] for i in window]
                    G = [sum(g) for g in zip(*each, strict=True)]
                if name == "miras":
                    A = [gates[1][t, h] * a - rate * g for a, g in zip(A, G, strict=True)]
                elif name == "atlas" and config.muon_steps:
                    S = [gates[1][t, h] * s + g for s, g in zip(S, G, strict=True)]
                    A = [gates[2][t, h] * a - rate * muon(s) for a, s in zip(A, S, strict=True)]
                else:
                    S = [gates[1][t, h] * s - rate * g for s, g in zip(S, G, strict=True)]
                    A = [gates[2][t, h] * a + s for a, s in zip(A, S, strict=True)]
            ys.append(network(link(A), norm, q[t, h]))
        heads.append(torch.stack(ys))
    y = torch.stack(heads, 1)
    if name == "ttt":
        return mixer.out(mixer.norm(y.flatten(-2)))
    return mixer.out(mixer.norm(y).flatten(-2) * F.silu(mixer.gate(x)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ttt", {}),
        ("ttt", {"memory": "mlp", "chunk": 5}),
        ("titans", {"chunk": 5}),
        ("titans", {"depth": 1, "chunk": 1}),
        ("miras", {"preset": "moneta", "chunk": 5}),
        ("miras", {"preset": "yaad", "chunk": 5}),
        ("miras", {"preset": "memora", "chunk": 5}),
        ("atlas", {"chunk": 5, "context": 3}),
        ("atlas", {"chunk": 5, "context": 3, "muon_steps": 0, "degree": 1}),
    ],
    ids=str,
)
def test_equals_a_loop_over_the_equations(name, options):
    mixer, x = MIXERS[name](**options).build(WIDTH).double(), torch.randn(1, 13, WIDTH).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.05 * torch.randn_like(p))
        y = mixer(x)[0][0]
    torch.testing.assert_close(y, oracle(mixer, x[0]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("chunk", [1, 4])
def test_atlas_with_a_context_of_one_is_titans(chunk):
    plain = {"context": 1, "degree": 1, "muon_steps": 0, "expansion": 2, "chunk": chunk}
    titans = MIXERS["titans"](chunk=chunk).build(WIDTH).double()
    atlas, x = MIXERS["atlas"](**plain).build(WIDTH).double(), torch.randn(2, T, WIDTH).double()
    weights = titans.state_dict()
    for name in ("inputs.gates.weight", "inputs.gates.bias"):  # every token of weight 1
        last = torch.full_like(weights[name][:2], 100.0 * name.endswith("bias"))
        weights[name] = torch.cat([weights[name], last])
    atlas.load_state_dict(weights)
    torch.testing.assert_close(atlas(x)[0], titans(x)[0], atol=1e-10, rtol=0)


def test_polynomial_features_are_every_monomial_and_approximate_exp():
    x = torch.tensor([2.0, 3.0])
    want = [2.0, 3.0, 2.0, 3.0, 4.5, 8 / 6, 12 / 6, 18 / 6, 27 / 6, 1.0]
    assert Polynomial(2, 3).size == 10
    torch.testing.assert_close(Polynomial(2, 3)(x).detach(), torch.tensor(want))


# ---- presets of test-time regression: the layers that they name


def inputs_of(name):
    config = regression.PRESETS[name]
    mixer, x = config.build(WIDTH).double(), torch.randn(2, T, WIDTH).double()
    (q, k, v), _, _ = mixer.inputs(x)
    return mixer, x, q, k, v


def finished(mixer, y):
    return mixer.out(mixer.norm(y).flatten(-2))


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_presets_of_the_delta_rule_are_the_mixers(name):
    mixer, x, q, k, v = inputs_of(name)
    if name == "delta_net":
        theirs = MIXERS["delta_net"]().build(WIDTH).double()
        weights = {
            n.replace("strength", "inputs.strength"): p for n, p in mixer.state_dict().items()
        }
        theirs.load_state_dict(weights)
        want = theirs(x)[0]
    else:  # without its output gate, in a plain loop
        beta, g = mixer.strength(x).sigmoid(), mixer.decay(x)
        S, ys = torch.zeros(2, 4, 4, 4).double(), []
        for t in range(T):
            S = g[:, t, :, None, None].exp() * S
            error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], S)
            S = S + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error)
            ys.append(torch.einsum("bhk,bhkv->bhv", q[:, t] / 2, S))
        want = finished(mixer, torch.stack(ys, 1))
    torch.testing.assert_close(mixer(x)[0], want, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", ["linear_attention", "gated_linear_attention", "softmax"])
def test_presets_of_attention_are_the_layers(name):
    mixer, x, q, k, v = inputs_of(name)
    scores = torch.einsum("bthk,bshk->bhts", q / 2, k)
    past = torch.ones(T, T).tril().bool()
    if name == "softmax":
        weights = scores.masked_fill(~past, -torch.inf).softmax(-1)
    else:
        weights = scores * past
        if name.startswith("gated"):
            sums = mixer.decay(x).cumsum(1).movedim(1, 2)
            decay = (sums[..., None] - sums[..., None, :]).masked_fill(~past, 0.0).exp()
            weights = weights * decay * mixer.strength(x).sigmoid().movedim(1, 2)[..., None, :]
    want = finished(mixer, torch.einsum("bhts,bshv->bthv", weights, v))
    torch.testing.assert_close(mixer(x)[0], want, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", ["mesa", "least_squares"])
def test_presets_of_least_squares_solve_the_batch_problem(name):
    mixer, x, q, k, v = inputs_of(name)
    gated, prior = name == "mesa", F.softplus(mixer.ridge)
    w = mixer.strength(x).sigmoid() if gated else torch.ones(2, T, 4).double()
    g = mixer.decay(x) if gated else torch.zeros(2, T, 4).double()
    ys = torch.zeros_like(v)
    for b, t, h in np.ndindex(2, T, 4):
        age = g[b, : t + 1, h].flip(0).cumsum(0).flip(0) - g[b, : t + 1, h]
        root = (w[b, : t + 1, h] * age.exp()).sqrt()[:, None]
        rows = torch.cat([root * k[b, : t + 1, h], prior[h].sqrt().diag()])
        goals = torch.cat([root * v[b, : t + 1, h], torch.zeros(4, 4).double()])
        ys[b, t, h] = q[b, t, h] / 2 @ torch.linalg.lstsq(rows, goals, driver="gels").solution
    torch.testing.assert_close(mixer(x)[0], finished(mixer, ys), atol=1e-8, rtol=0)


# ---- what the memories are for


def test_least_squares_recalls_under_correlated_keys():
    """At most a tenth of the error of linear attention, even at its best scale."""
    n, K = 48, 16
    k = F.normalize(torch.randn(8, n, 1, K) + 2 * torch.randn(8, 1, 1, K), dim=-1).double()
    v = k @ torch.randn(K, K).double()
    y, _ = ridge_regression(k, k, v, ridge=torch.full((1, K), 1e-4).double())
    mean = torch.einsum("bnhk,bnhv,bmhk->bmhv", k, v, k)
    mean = mean * (mean * v).sum() / mean.square().sum()
    errors = [(z[:, -8:] - v[:, -8:]).norm() / v[:, -8:].norm() for z in (y, mean)]
    assert errors[0] <= 0.1 * errors[1], errors


def test_the_local_line_removes_the_bias_at_the_boundary():
    """Keys on a quarter of a circle, values that rise along it, asked for at its ends."""
    angle = torch.rand(16, 200).double() * torch.pi / 2
    angle[:, -20:] = torch.where(torch.rand(16, 20) < 0.5, 0.02, torch.pi / 2 - 0.02)
    k = torch.stack([angle.cos(), angle.sin()], -1)[:, :, None]
    truth = (angle + 0.3 * (3 * angle).sin())[..., None, None]
    v = truth + 0.05 * torch.randn_like(truth)
    errors = {}
    for degree in (0, 1):
        best = [
            local_regression(s * k, k, v, x=k, degree=degree, ridge=1e-3)[0] for s in (5, 20, 80)
        ]
        # what is asked for is in the past of nobody: each sees 180 tokens from all over
        errors[degree] = min((y - truth)[:, 180:181].square().mean() for y in best)
    assert errors[1] < errors[0], errors


def accuracy(y, codes, label):
    return (torch.einsum("btv,cv->btc", y, codes).argmax(-1) == label).double().mean().item()


@pytest.mark.parametrize("seed", range(3))
def test_huber_memory_recalls_past_gross_outliers(seed):
    """At least 10 points above L2, each at its best rate, 10 % of the values 20 times too long."""
    torch.manual_seed(seed)
    rows, pairs, times, K = 16, 12, 6, 24
    codes = torch.randn(32, K).sign() / K**0.5
    k = F.normalize(torch.randn(rows, pairs, K), dim=-1)
    label = torch.randint(32, (rows, pairs))
    order = torch.cat([torch.randperm(pairs) for _ in range(times)])
    keys, values = k[:, order], codes[label[:, order]]
    wild = torch.rand(rows, pairs * times) < 0.1
    values = torch.where(
        wild[..., None], 20 * F.normalize(torch.randn_like(values), dim=-1), values
    )
    asked = torch.cat([keys, k], 1)[:, :, None]
    told = torch.cat([values, torch.zeros_like(k)], 1)[:, :, None]
    live = (torch.arange(asked.shape[1]) < pairs * times).double().expand(rows, -1)[..., None]
    init = [torch.zeros(1, K, K)]
    scores = {}
    for loss in ("l2", "huber"):
        more = {"threshold": torch.full_like(live, 1.0)} if loss == "huber" else {}
        scores[loss] = max(
            accuracy(
                ops.test_time_scan(
                    asked, asked, told, init=init, rate=rate * live, rule=Rule(loss=loss), **more
                )[0][:, -pairs:, 0].float(),
                codes,
                label,
            )
            for rate in (0.1, 0.3, 0.6, 1.0)
        )
    assert scores["huber"] >= scores["l2"] + 0.1, scores


def stored(degree, solver, K=6, passes=10):
    """The most random pairs, of a grid, that a matrix over the features recalls at 0.9."""
    features, codes = Polynomial(K, degree), torch.randn(32, 24).sign()
    most = 0
    for pairs in (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        k = K**0.5 * F.normalize(torch.randn(4, pairs, 1, K), dim=-1)
        label = torch.randint(32, (4, pairs))
        u, v = F.normalize(features(k).detach(), dim=-1), codes[label][:, :, None]
        asked = torch.zeros_like(u[..., 0])
        if solver == "ridge":
            u, v = u.double().repeat(1, 2, 1, 1), v.double().repeat(1, 2, 1, 1)
            weight = torch.cat([asked + 1, asked], 1).double()
            ridge = torch.full((1, features.size), 1e-6).double()
            y, _ = ridge_regression(u, u, v, ridge=ridge, weight=weight)
        else:
            u, v = u.repeat(1, passes, 1, 1), v.repeat(1, passes, 1, 1)
            rate = torch.cat([torch.ones(4, pairs * (passes - 1), 1), asked], 1)
            init = [torch.zeros(1, features.size, 24)]
            y, _ = ops.test_time_scan(u, u, v, init=init, rate=rate, rule=Rule())
        if accuracy(y[:, -pairs:, 0].float(), codes, label) < 0.9:
            break
        most = pairs
    return most


@pytest.mark.parametrize("solver", ["sgd", "ridge"])
def test_capacity_grows_with_the_degree_of_the_features(solver):
    """By ten passes of online steps, and at the optimum; keys as long as after an RMSNorm."""
    curve = [stored(degree, solver) for degree in (1, 2, 3)]
    assert curve[0] < curve[1] < curve[2], curve


@pytest.mark.parametrize("seed", range(3))
def test_a_window_learns_more_of_what_is_repeated_with_noise(seed):
    """Related keys, noise as long as the values, four times in any order; each at its best rate."""
    torch.manual_seed(seed)
    rows, pairs, times, K = 32, 8, 4, 24
    k = F.normalize(torch.randn(rows, pairs, K) + torch.randn(rows, 1, K), dim=-1)
    v = F.normalize(torch.randn(rows, pairs, K), dim=-1)
    order = torch.cat([torch.randperm(pairs) for _ in range(times)])
    told = v[:, order] + F.normalize(torch.randn(rows, pairs * times, K), dim=-1)
    told = torch.cat([told, torch.zeros_like(k)], 1)[:, :, None]
    asked = torch.cat([k[:, order], k], 1)[:, :, None]
    live = (torch.arange(asked.shape[1]) < pairs * times).float().expand(rows, -1)[..., None]

    def error(window, rate):
        init = [torch.zeros(1, K, K)]
        y, _ = ops.test_time_scan(
            asked, asked, told, init=init, rate=rate * live, rule=Rule(window=window)
        )
        return (y[:, -pairs:, 0] - v).square().sum(-1).mean().item()

    rates = (0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
    errors = {window: min(error(window, rate) for rate in rates) for window in (1, 8)}
    assert errors[8] < errors[1], errors


@pytest.mark.plain
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ttt", {"heads": 3}, "heads=3 must divide width=16"),
        ("ttt", {"memory": "mlpp"}, "Did you mean 'mlp'"),
        ("ttt", {"chunk": 0}, "chunk=0"),
        ("titans", {"depth": 0}, "depth=0"),
        ("titans", {"heads": 3}, "heads=3 must divide width=16"),
        ("titans", {"chunk": 0}, "chunk=0"),
        ("miras", {"preset": "monet"}, "Did you mean 'moneta'"),
        ("miras", {"max_rate": 0.0}, r"max_rate=0\.0"),
        ("atlas", {"context": 0}, "window=0"),
        ("atlas", {"degree": 0}, "degree at least 1, got 0"),
        ("test_time_regression", {"solver": "nadaraya"}, 'wants weights="none"'),
        ("test_time_regression", {"solver": "rigde"}, "Did you mean 'ridge'"),
    ],
)
def test_errors_say_what_to_fix(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](**options).build(WIDTH)
