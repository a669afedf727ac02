"""Teacher forcing against its definition: bounded gradients, and the ends of its range."""

import pytest
import torch
from laws import assert_near

from stepscan.mixers import MIXERS
from stepscan.ops.cells import HiddenState, cell_scan
from stepscan.ops.dynamics_cells import ShallowPLRNN
from stepscan.train.forcing import adaptive_alpha, free_run, gtf, sparse_tf


def build(name="plrnn", width=3, **options):
    torch.manual_seed(0)
    return MIXERS[name](**options).build(width).double().cell()


def tents(slope=1.99):
    """Two tent maps z' = 1 - slope |z| side by side: bounded, and everything grows by `slope`."""
    eye = torch.eye(2, dtype=torch.float64)
    fold = -slope * torch.cat([eye, eye], 1)
    zeros = torch.zeros(4, dtype=torch.float64)
    return ShallowPLRNN(
        decay=zeros[:2],
        outer=fold.requires_grad_(),
        inner=torch.cat([eye, -eye]),
        bias=torch.ones(2, dtype=torch.float64),
        threshold=zeros,
        input_weight=zeros.view(2, 2),
    )


def orbits(cell, rows, T):
    start = torch.rand(rows, cell.sizes[1], dtype=torch.float64) - 0.5
    return torch.cat([start[:, None], free_run(cell, start, steps=T - 1)], 1)


@pytest.mark.parametrize("name", ["plrnn", "al_rnn"])
def test_alpha_0_runs_freely_and_alpha_1_takes_single_steps(name):
    cell, x = build(name), torch.randn(2, 9, 3, dtype=torch.float64)
    free = cell_scan(cell, torch.zeros(2, 8, 3).double(), state=HiddenState(x[:, 0]))[0]
    assert_near(gtf(cell, x, alpha=0.0), free, what="alpha 0")
    assert_near(free_run(cell, x[:, 0], steps=8), free, what="free run")
    single = [cell_scan(cell, x[:, :1] * 0, state=HiddenState(x[:, t]))[0] for t in range(8)]
    assert_near(gtf(cell, x, alpha=1.0), torch.cat(single, 1), what="alpha 1")
    assert_near(sparse_tf(cell, x, every=1), gtf(cell, x, alpha=1.0), what="each step")


def test_sparse_forcing_is_free_runs_one_after_another():
    cell, x = build("al_rnn", 5, relu_units=2), torch.randn(2, 9, 5, dtype=torch.float64)
    pieces = [free_run(cell, x[:, t], steps=4) for t in (0, 4)]
    assert_near(sparse_tf(cell, x, every=4), torch.cat(pieces, 1), what="outputs")


def test_forcing_one_number_of_three_leaves_the_others_alone():
    """Half way towards the observation, number by number."""
    cell, x = build(), torch.randn(1, 4, 1, dtype=torch.float64)
    z = [x[0, 0, 0].item(), 0.0, 0.0]
    for t in range(3):
        forced = torch.tensor([[(z[0] + x[0, t, 0].item()) / 2, *z[1:]]], dtype=torch.float64)
        after = cell.step(cell.bias[None], HiddenState(forced))[0]
        assert abs(gtf(cell, x, alpha=0.5)[0, t, 0].item() - after[0, 0].item()) < 1e-12
        z = after[0].tolist()


def gradient_norm(cell, T, alpha):
    torch.manual_seed(T)
    x = orbits(cell, 4, T).detach()
    x = (x + 0.05 * torch.randn_like(x)).requires_grad_()
    said = gtf(cell, x, alpha=alpha)
    by_weight, by_start = torch.autograd.grad(said[:, -1].sum(), [cell.outer, x])
    return by_weight.norm().item(), by_start[:, 0].norm().item()


def test_gradients_stay_bounded_where_alpha_says_so_and_explode_without():
    cell = tents()
    z = orbits(cell, 50, 50).detach()
    largest = torch.linalg.matrix_norm(cell.jacobian(z), 2).max().item()
    alpha = 1 - 1 / largest
    assert abs(largest - 1.99) < 1e-9
    forced = torch.linalg.multi_dot(tuple((1 - alpha) * cell.jacobian(z[0, :40])))
    assert torch.linalg.matrix_norm(forced, 2) <= 1 + 1e-9
    by_length = [gradient_norm(cell, T, alpha) for T in (40, 200, 1000)]
    assert max(weight for weight, _ in by_length) < 4 * by_length[0][0]
    assert all(start <= 4 for _, start in by_length)
    weaker = [gradient_norm(cell, T, alpha + 0.1)[0] for T in (40, 1000)]
    assert weaker[1] < 2 * weaker[0]
    free = [gradient_norm(cell, T, 0.0)[0] for T in (40, 200, 1000)]
    assert free[0] > 1e9 * by_length[0][0]
    assert free[1] > 1e40 * free[0]


def test_adaptive_alpha_finds_the_growth_rate():
    cell = tents()
    x = orbits(cell, 8, 60).detach()
    assert abs(adaptive_alpha(cell, x) - (1 - 1 / 1.99)) < 1e-9
    assert abs(adaptive_alpha(cell, x, previous=0.9, keep=0.5) - 0.5 * (1.9 - 1 / 1.99)) < 1e-9
    assert adaptive_alpha(tents(0.5), x) == 0


@pytest.mark.plain
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, x: gtf(c, x, alpha=1.5), "alpha from 0 to 1"),
        (lambda c, x: sparse_tf(c, x, every=0), "every >= 1"),
        (lambda c, x: gtf(c, x.repeat(1, 1, 2), alpha=0.5), "1 to 3 observed numbers, got 6"),
        (lambda c, x: adaptive_alpha(c, x[..., :2]), "all 3 numbers, got 2"),
    ],
)
def test_errors_say_what_to_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call(build(), torch.randn(2, 5, 3, dtype=torch.float64))
