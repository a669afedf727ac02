"""Newton's method solves the recurrence that the loop runs, or says that it does not."""

from itertools import islice

import pytest
import torch
from cell_cases import CELLS, make
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.cells import GRU, Elman, _pick, cell_scan
from stepscan.ops.diagonal_cells import ParaGRU
from stepscan.ops.newton import EXACT, Problem, rounds, scan, solve

every_cell = pytest.mark.parametrize("name", CELLS)


def step(cell, form="newton"):
    return lambda xs, state, resets: cell_scan(cell, *xs, state=state, resets=resets, form=form)


@every_cell
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_law_of_a_form(name, dtype):
    cell, x, state, resets = make(name, dtype=dtype)
    weights = [t for t in cell if isinstance(t, torch.Tensor)]
    run = step(cell)
    for marks in (resets, torch.zeros_like(resets), None):
        forms_law(run, step(cell, "recurrent"), (x,), state, resets=marks)
    split_law(run, (x,), state, [0, 1, 20], resets=resets, params=weights)
    reset_law(run, (x,), state, resets, params=weights)
    rows_law(run, (x,), state, resets=resets, params=weights)
    causal_law(run, (x,), 20)


@pytest.mark.parametrize("name", ["gru", "para_lstm"])
def test_gradcheck(name):
    cell, x, state, _ = make(name, T=6)
    resets = torch.zeros(1, 6, dtype=torch.bool)
    resets[0, 3] = True
    leaf = [x[:1].requires_grad_(), *(t[:1].requires_grad_() for t in state), *cell]

    def run(x, *rest):
        s, weights = type(state)(*rest[: len(state)]), type(cell)(*rest[len(state) :])
        y, s = cell_scan(weights, x, state=s, resets=resets, form="newton")
        return (y, *s)

    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


def problem_of(cell, x):
    return Problem(cell, cell.project(x), cell.init(len(x)), None, cell.init(len(x)))


def test_a_gru_takes_a_handful_of_rounds():
    module = torch.nn.GRU(16, 16).double()
    cell = GRU(*(p.detach() for p in module.parameters()))
    x = torch.randn(2, 512, 16, dtype=torch.float64)
    want = cell_scan(cell, x, form="recurrent")[0]
    errors = []
    for number, (solution, _) in enumerate(rounds(problem_of(cell, x)), 1):
        errors.append((solution[..., 0] - want).abs().max().item())
        if number == 5:
            break
    assert errors[-1] < 1e-12, errors
    assert errors == sorted(errors, reverse=True)


def test_large_diagonal_recurrences_take_more_rounds():
    torch.manual_seed(0)  # others of this size make Newton's method fail, and the loop serves
    cell, x, *_ = make("para_gru", T=512)
    cell = cell._replace(recurrent_weight=2 * torch.randn_like(cell.recurrent_weight))
    want = cell_scan(cell, x, form="recurrent")[0]
    found = list(islice(rounds(problem_of(cell, x)), 20))
    exact = [worst <= EXACT * torch.finfo(torch.float64).eps for _, worst in found]
    assert not any(exact[:6])
    assert exact[-1]
    assert (found[-1][0][:, :, 0] - want).abs().max() < 1e-14


def chaotic(dtype=torch.float64):
    weight = 6 * torch.randn(12, 12, dtype=dtype)
    cell = Elman(torch.randn(12, 3, dtype=dtype), weight, *torch.randn(2, 12, dtype=dtype))
    return cell, torch.randn(2, 300, 3, dtype=dtype)


def test_where_rounds_do_not_help_the_loop_serves_and_says_so():
    cell, x = chaotic()
    assert "residual" in solve(problem_of(cell, x))[1]
    with pytest.warns(RuntimeWarning, match=r"failed for Elman: .*residual.* The loop serves"):
        got = cell_scan(cell, x, form="newton")
    assert_near(got, cell_scan(cell, x, form="recurrent"), what="fallback")


def test_what_is_not_finite_is_left_to_the_loop():
    cell, x, *_ = make("para_gru")
    x[0, 3] = torch.inf
    with pytest.warns(RuntimeWarning, match="a residual is nan"):
        y, _ = cell_scan(cell, x, form="newton")
    assert y[1].isfinite().all()


@pytest.mark.parametrize("T", [1, 2, 15, 16, 17])
@pytest.mark.parametrize(("N", "M"), [(1, 4), (2, 4), (3, 1), (1, 1)])
def test_the_linear_recurrence_inside(T, N, M):
    jacobian = torch.randn(2, T, N, N, M, dtype=torch.float64)
    residual = torch.randn(2, T, N, M, dtype=torch.float64)
    d, ds = torch.zeros_like(residual[:, 0]), []
    for t in range(T):
        d = torch.einsum("bijm,bjm->bim", jacobian[:, t], d) + residual[:, t]
        ds.append(d)
    assert_near(scan(jacobian, residual), torch.stack(ds, 1), what="d")


def test_auto_derives_long_channelwise_cells_so():
    cell, x, *_ = make("para_gru", T=128)
    assert _pick(cell, x, None) == "newton"
    assert _pick(cell, x[:, 1:], None) == "recurrent"
    with torch.no_grad():
        assert _pick(cell, x, None) == "recurrent"
    assert _pick(make("gru")[0], x, None) != "newton"
    resets = torch.rand(3, 128) < 0.1
    both = [cell_scan(cell, x, resets=resets, form=form)[0].sum() for form in ("auto", "recurrent")]
    grads = [torch.autograd.grad(loss, list(cell)) for loss in both]
    assert_near(*grads, what="gradients")
    assert isinstance(cell, ParaGRU)
