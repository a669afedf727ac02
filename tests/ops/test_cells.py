from typing import NamedTuple

import numpy as np
import pytest
import torch
from laws import (
    assert_near,
    causal_law,
    forms_law,
    outcome,
    reset_law,
    rows_law,
    split_law,
)
from native import accuracy_law, every_level, every_thread, needs, repeat_law
from torch import Tensor, nn

from stepscan.kernels import cell_scan as kernel
from stepscan.ops.cells import GRU, LSTM, SLSTM, Elman, HiddenState, Native, _pick, cell_scan

B, D, E, HEADS = 3, 5, 6, 2
TORCH = {"elman": (Elman, nn.RNN), "gru": (GRU, nn.GRU), "lstm": (LSTM, nn.LSTM)}
NAMES = [*TORCH, "slstm"]
native = needs("cell_scan")
every_cell = pytest.mark.parametrize("name", NAMES)
TORCH_FORMS = [*((name, form) for name in TORCH for form in ("recurrent", "fused"))]
TORCH_FORMS += [("slstm", "recurrent")]
every_torch_form = pytest.mark.parametrize(("name", "form"), TORCH_FORMS)
every_case = pytest.mark.parametrize(
    ("name", "form", "dtype"),
    [
        *((*case, dtype) for case in TORCH_FORMS for dtype in (torch.float64, torch.float32)),
        *(pytest.param(name, "cpu", torch.float32, marks=native) for name in NAMES),
    ],
    ids=str,
)


def make(name, T=40, dtype=torch.float64, scale=1.0):
    """A cell, its input, a state that it came to, and resets."""
    if name == "slstm":
        cell = SLSTM(torch.randn(HEADS, E // HEADS, 4, E // HEADS, dtype=dtype) / 2)
    else:
        kind, module = TORCH[name]
        cell = kind(*(p.detach() for p in module(D, E).to(dtype).parameters()))
    cell = type(cell)(*(weight.requires_grad_() for weight in cell))
    x = scale * torch.randn(B, T, cell.sizes[0], dtype=dtype)
    state = cell_scan(cell, x[:, :5])[1]
    return cell, x, type(state)(*(t.detach() for t in state)), torch.rand(B, T) < 0.1


def step(cell, form="auto"):
    return lambda xs, state, resets: cell_scan(cell, *xs, state=state, resets=resets, form=form)


@every_case
def test_every_law_of_an_op(name, form, dtype):
    cell, x, state, resets = make(name, dtype=dtype)
    run = step(cell, form)
    for cuts in ([0], [1, 40], [3, 3, 20], list(range(1, 40))):
        split_law(run, (x,), state, cuts, resets=resets, params=cell)
    split_law(run, (x,), state, [7], params=cell)
    reset_law(run, (x,), state, resets, params=cell)
    rows_law(run, (x,), state, resets=resets, params=cell)
    causal_law(run, (x,), 20)


@every_torch_form
def test_gradcheck(name, form):
    cell, x, state, _ = make(name, T=6)
    resets = torch.zeros(1, 6, dtype=torch.bool)
    resets[0, 3] = True
    leaf = [x[:1].requires_grad_(), *(t[:1].requires_grad_() for t in state), *cell]

    def run(x, *rest):
        s, weights = type(state)(*rest[: len(state)]), type(cell)(*rest[len(state) :])
        y, s = cell_scan(weights, x, state=s, resets=resets, form=form)
        return (y, *s)

    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


@every_case
def test_forms_law(name, form, dtype):
    cell, x, state, resets = make(name, dtype=dtype)
    for marks in (resets, torch.zeros_like(resets), None):
        forms_law(step(cell, form), step(cell, "recurrent"), (x,), state, resets=marks)


def sized(name, B, T, heads, size):
    """As `step` of the laws: the cell's weights among the inputs; its state; and resets."""
    if name == "slstm":
        cell = SLSTM(torch.randn(heads, size, 4, size) / size**0.5)
    else:
        kind, module = TORCH[name]
        cell = kind(*(p.detach() for p in module(D, size).parameters()))
    x = torch.randn(B, T, cell.sizes[0])
    state = cell_scan(cell, torch.randn(B, 4, cell.sizes[0]), form="recurrent")[1]
    return (x, *cell), state, torch.rand(B, T) < 0.1


def step_of(name):
    kind = SLSTM if name == "slstm" else TORCH[name][0]

    def of_form(form):
        return lambda xs, state, resets: cell_scan(
            kind(*xs[1:]), xs[0], state=state, resets=resets, form=form
        )

    return of_form


# One number and odd ones; threads over heads, over rows and over units.
SIZES = [
    *((name, 1, 1, 1, 1) for name in NAMES),
    *((name, 9, 12, 1, 70) for name in NAMES),
    ("elman", 2, 9, 1, 191),
    ("gru", 3, 11, 1, 130),
    ("lstm", 5, 7, 1, 96),
    ("slstm", 2, 9, 2, 65),
    ("slstm", 3, 7, 3, 60),
]


@native
@every_level
@every_thread
@pytest.mark.parametrize(("name", "B", "T", "heads", "size"), SIZES)
def test_native_form_on_poisoned_memory(level, threads, name, B, T, heads, size, poisoned):
    inputs, state, resets = sized(name, B, T, heads, size)
    accuracy_law(step_of(name), inputs, state, resets=resets)
    repeat_law(step_of(name), inputs, state)


def forget(regime, shape):
    """The logarithm of what a token keeps of the cell before it."""
    u = torch.rand(shape)
    if regime.startswith("resets"):
        return torch.where(u < 0.05, -float(regime.removeprefix("resets of ")), -1e-3)
    return {
        "usual": nn.functional.logsigmoid(torch.randn(shape) + 3),
        "uniform": -20 * u,
        "any size": -(10 ** (8 * u - 4)),
        "none": torch.full(shape, -1e-30),
    }[regime]


@native
@pytest.mark.parametrize("name", ["gru", "lstm", "slstm"])
@pytest.mark.parametrize(
    "regime", ["usual", "uniform", "any size", "none", "resets of 1e4", "resets of 1e6"]
)
def test_native_form_in_every_regime_of_forgetting(name, regime):
    (_, *cell), state, resets = sized(name, 2, 150, 1, 18)
    gates = torch.randn(2, 150, 3 if name == "gru" else 4, 18)
    kept = forget(regime, (2, 150, 18)).double()
    gates[:, :, 1] = (kept - torch.log(-torch.expm1(kept))).float()  # sigmoid gives exp(kept)
    if name != "slstm":
        cell[0] = torch.eye(gates[0, 0].numel())
    accuracy_law(step_of(name), (gates.flatten(2), *cell), state, resets=resets)
    accuracy_law(step_of(name), (gates.flatten(2), *cell), state)


class Simple(NamedTuple):
    """h_t = f(x_t + R h_{t-1}): all that it takes to give a cell of one's own the native form."""

    recurrent_weight: Tensor

    sizes = property(lambda self: self.recurrent_weight.shape)

    def init(self, batch):
        return HiddenState(self.recurrent_weight.new_zeros(batch, self.sizes[0]))

    def project(self, x):
        return x


class Relu(Simple):
    native = property(lambda self: Native("relu", self.recurrent_weight.mT[None]))

    def step(self, u, state):
        hidden = (u + state.hidden @ self.recurrent_weight.mT).relu()
        return hidden, HiddenState(hidden)


class Linear(Simple):
    native = property(lambda self: Native("identity", self.recurrent_weight.mT[None]))

    def step(self, u, state):
        hidden = u + state.hidden @ self.recurrent_weight.mT
        return hidden, HiddenState(hidden)


@native
@pytest.mark.parametrize("kind", [Relu, Linear])
def test_a_cell_of_ones_own_has_the_native_form(kind):
    weight, x = torch.randn(21, 21) / 10, torch.randn(3, 30, 21)
    state, resets = HiddenState(torch.randn(3, 21)), torch.rand(3, 30) < 0.1

    def step(form):
        return lambda xs, s, marks: cell_scan(kind(xs[1]), xs[0], state=s, resets=marks, form=form)

    accuracy_law(step, (x, weight), state, resets=resets)
    assert_near(cell_scan(kind(weight), x), cell_scan(kind(weight), x, form="cpu"), what="auto")


@native
@every_cell
def test_any_strides_will_do_and_inputs_are_kept(name):
    inputs, state, resets = sized(name, 4, 20, 2, 8)
    want = outcome(lambda xs, s: step_of(name)("cpu")(xs, s, resets), inputs, state)
    double = lambda t: torch.stack([t, t + 1], -1)[..., 0]  # noqa: E731
    strided, marks = tuple(map(double, inputs)), resets.mT.contiguous().mT
    ends = type(state)(*map(double, state))
    before = [t.clone() for t in (*strided, *ends, marks)]
    leaf = [t.requires_grad_() for t in (*strided, *ends)]
    y, last = step_of(name)("cpu")(strided, ends, marks)
    assert_near((y, *last), (want.y, *want.state), what="strides")
    assert all(map(torch.equal, [t.detach() for t in (*leaf, marks)], before))
    got = torch.autograd.grad(y[:, -1:].expand(4, 3, -1).sum() + last[0].mT.sum(), leaf)
    assert all(g.isfinite().all() for g in got)


@native
@pytest.mark.plain
@pytest.mark.parametrize("name", ["gru", "slstm"])
def test_native_form_is_a_whole_operator(name):
    (x, *weights), state, resets = sized(name, 2, 9, 1, 3)
    cell = (SLSTM if name == "slstm" else TORCH[name][0])(*weights)
    kind, weight, bias = cell.native
    state_in = torch.stack(state).requires_grad_()
    u = cell.project(x).detach().requires_grad_()
    given = (u, weight.contiguous().requires_grad_(), bias, state_in, resets)
    operator = torch.ops.stepscan.cell_scan.default
    torch.library.opcheck(operator, (*given, kernel.KINDS[kind].number, True))
    compiled = torch.compile(cell_scan, backend="eager", fullgraph=True)
    options = {"state": state, "resets": resets}
    cell = type(cell)(*(w.requires_grad_() for w in cell))
    got, want = compiled(cell, x, **options), cell_scan(cell, x, **options, form="cpu")
    assert_near((got[0], *got[1]), (want[0], *want[1]), what="compiled")
    (once,) = torch.autograd.grad(want[0].sum(), cell[-1], create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        once.sum().backward()


@native
def test_one_of_outputs_and_state_is_enough_for_a_gradient():
    inputs, state, _ = sized("lstm", 2, 9, 1, 6)
    for pick in (lambda y, s: y[:, 2], lambda y, s: s.cell, lambda y, s: s.hidden):
        both = []
        for form in ("cpu", "recurrent"):
            leaf = [t.clone().requires_grad_() for t in (*inputs, *state)]
            y, last = step_of("lstm")(form)(leaf[:5], type(state)(*leaf[5:]), None)
            both.append(torch.autograd.grad(pick(y, last).sum(), leaf, materialize_grads=True))
        assert_near(*both, what="gradients")


@native
def test_auto_leaves_a_whole_lstm_to_torch():
    picked = {}
    for name in NAMES:
        (x, *cell), _, resets = sized(name, 2, 9, 1, 6)
        cell = (SLSTM if name == "slstm" else TORCH[name][0])(*cell)
        marks = None, torch.zeros_like(resets), torch.ones_like(resets)
        picked[name] = [_pick(cell, x, mark) for mark in marks]
        assert _pick(cell, x[:, :7], None) == "recurrent"
        assert _pick(cell, x.double(), None) != "cpu"
    assert picked.pop("lstm") == ["fused", "fused", "cpu"]
    assert all(forms == ["cpu"] * 3 for forms in picked.values())


@native
def test_native_form_refuses_what_it_cannot_take():
    (x, *cell), state, _ = sized("lstm", 2, 9, 1, 6)
    with pytest.raises(ValueError, match="use another form"):
        step_of("lstm")("cpu")((x.double(), *cell), state, None)
    given = torch.rand(2, 9, 24), torch.rand(1, 5, 24), None, torch.rand(2, 2, 6), None
    with pytest.raises(ValueError, match=r"want u \[B T H 4 K\].* got \(2, 9, 24\), \(1, 5, 24\)"):
        kernel.cell_scan("lstm", *given)
    with pytest.raises(ValueError, match="Plain has no property `native`"):
        cell_scan(type("Plain", (Simple,), {})(torch.eye(6)), torch.rand(2, 9, 6), form="cpu")


@pytest.mark.parametrize("name", TORCH)
def test_weights_of_torch_give_the_results_of_torch(name):
    kind, module = TORCH[name]
    module = module(D, E, batch_first=True).double()
    x = torch.randn(B, 20, D, dtype=torch.float64)
    want, last = module(x)
    got, state = cell_scan(kind(*module.parameters()), x)
    assert_near(got, want, what="outputs")
    assert_near(tuple(state), tuple(t[0] for t in (last if name == "lstm" else (last,))), what="h")


def slstm_by_hand(recurrent, x):
    """The equations as published, one number at a time: the first step takes m = i~."""
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    heads, size = recurrent.shape[:2]
    x = x.reshape(len(x), 4, heads, size)
    y, c, n, m = (np.zeros((heads, size)) for _ in range(4))
    ys = []
    for t, part in enumerate(x):
        i, f, z, o = part + np.einsum("hk,hkgj->ghj", y, recurrent)
        log_f = -np.logaddexp(0, -f)
        new = i if t == 0 else np.maximum(i, log_f + m)
        i, f = np.minimum(np.exp(i - new), 1), np.minimum(np.exp(log_f + m - new), 1)
        c, n, m = f * c + i * np.tanh(z), f * n + i, new
        y = sigmoid(o) * c / n
        ys.append(y.ravel())
    return np.stack(ys), (y, c, n, m)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_slstm_follows_the_paper_from_the_first_token_on(scale):
    cell, x, *_ = make("slstm", scale=scale)
    y, state = cell_scan(cell, x)
    for row in range(B):
        want, last = slstm_by_hand(cell.recurrent_weight.detach().numpy(), x[row].numpy())
        assert_near(y[row], torch.tensor(want), what="outputs")
        assert_near(tuple(t[row] for t in state), tuple(map(torch.tensor, last)), what="state")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_slstm_gates_of_any_size_stay_finite(dtype):
    cell, x, _, resets = make("slstm", dtype=dtype, scale=1e4)
    y, state = cell_scan(cell, x.requires_grad_(), resets=resets)
    grads = torch.autograd.grad(y.sum() + sum(t.sum() for t in state), [x, *cell])
    assert all(t.isfinite().all() for t in (y, *state, *grads))
    assert state.normalizer.min() >= 1


@every_cell
def test_half_precision_keeps_a_wide_state(name):
    cell, x, *_ = make(name, dtype=torch.float32)
    y, state = cell_scan(type(cell)(*(w.bfloat16() for w in cell)), x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert {t.dtype for t in state} == {torch.float32}


@pytest.mark.plain
def test_errors_say_what_to_fix():
    cell, x, state, _ = make("lstm")
    with pytest.raises(ValueError, match=r"want x \[B T D\] with D = 5, got \(3, 40, 4\)"):
        cell_scan(cell, x[..., :4])
    with pytest.raises(ValueError, match=r"state.cell: want \(3, 6\), got \(3, 5\)"):
        cell_scan(cell, x, state=state._replace(cell=state.cell[:, :5]))
    with pytest.raises(ValueError, match=r"resets: want bool \(3, 40\)"):
        cell_scan(cell, x, resets=torch.zeros(3, 40))
    with pytest.raises(ValueError, match="Did you mean 'recurrent'"):
        cell_scan(cell, x, form="recurent")
