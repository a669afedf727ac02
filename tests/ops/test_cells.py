import numpy as np
import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law
from torch import nn

from stepscan.ops.cells import FORMS, GRU, LSTM, SLSTM, Elman, cell_scan

B, D, E, HEADS = 3, 5, 6, 2
TORCH = {"elman": (Elman, nn.RNN), "gru": (GRU, nn.GRU), "lstm": (LSTM, nn.LSTM)}
every_cell = pytest.mark.parametrize("name", [*TORCH, "slstm"])
every_case = pytest.mark.parametrize(
    ("name", "form"), [*((name, form) for name in TORCH for form in FORMS), ("slstm", "recurrent")]
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
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_law_of_an_op(name, form, dtype):
    cell, x, state, resets = make(name, dtype=dtype)
    run = step(cell, form)
    for cuts in ([0], [1, 40], [3, 3, 20], list(range(1, 40))):
        split_law(run, (x,), state, cuts, resets=resets, params=cell)
    split_law(run, (x,), state, [7], params=cell)
    reset_law(run, (x,), state, resets, params=cell)
    rows_law(run, (x,), state, resets=resets, params=cell)
    causal_law(run, (x,), 20)


@every_case
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


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forms_law(name, dtype):
    cell, x, state, resets = make(name, dtype=dtype)
    for marks in (resets, torch.zeros_like(resets), None):
        forms_law(step(cell, "fused"), step(cell, "recurrent"), (x,), state, resets=marks)


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
