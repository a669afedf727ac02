"""Teacher forcing against its definition: bounded gradients, and the ends of its range."""

from functools import partial

import pytest
import torch
from laws import assert_near

from stepscan.analyze.chaos import state_divergence
from stepscan.mixers import MIXERS
from stepscan.ops.cells import HiddenState, cell_scan
from stepscan.ops.dynamics_cells import ShallowPLRNN
from stepscan.tasks.dynamics import lorenz, trajectories
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
    cell = build(name, **({"relu_units": 2} if name == "al_rnn" else {}))
    x = torch.randn(2, 9, 3, dtype=torch.float64)
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
    at_bound = [gradient_norm(cell, T, alpha)[1] for T in (40, 200, 1000)]
    assert all(start <= 1.99 * 8**0.5 + 1e-9 for start in at_bound)  # 8 numbers, each 1.99 or less
    above = [gradient_norm(cell, T, alpha + 0.05)[0] for T in (40, 200, 1000)]
    assert max(above) < 3 * min(above)  # that by weights is a geometric series
    free = [gradient_norm(cell, T, 0.0)[0] for T in (40, 200)]
    assert free[0] > 1e9 * max(above)
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


def learn(name, forced, *, width, steps, T=41, observed=3, noise=0.0, seeds=5, **options):
    """Train cells on Lorenz: a model for each seed and each way of `forced`, side by side.

    Returns the norms of their gradients [steps, seeds, ways], D_stsp of their free runs
    [seeds, ways], and that of other data.
    """
    system, rng = lorenz(every=0.02), torch.Generator().manual_seed(0)
    kept = trajectories(system, 24, 2000, rng, settle=300)
    kept = system.standardized(kept)[..., :observed].float()
    data, truth, other = kept[:16], kept[16:20], kept[20:]
    data = data + noise * torch.randn(data.shape, generator=rng)
    cells = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        cells.append(MIXERS[name](**options).build(width).cell())
    kind, rest = type(cells[0]), [p for p in cells[0] if not torch.is_tensor(p)]
    tensors = zip(*([p for p in cell if torch.is_tensor(p)] for cell in cells), strict=True)
    start = [torch.stack(p).detach() for p in tensors]
    models = [[p.clone().requires_grad_() for p in start] for _ in forced]
    optimizer = torch.optim.RAdam([p for weights in models for p in weights], lr=2e-3)
    plan = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.02 ** (1 / steps))
    norms = torch.zeros(steps, seeds, len(forced))
    for step in range(steps):
        row = torch.randint(len(data), (seeds, 16, 1), generator=rng)
        at = torch.randint(data.shape[1] - T, row.shape, generator=rng)
        x = data[row, at + torch.arange(T)]
        optimizer.zero_grad()
        for i, (weights, force) in enumerate(zip(models, forced, strict=True)):
            said = torch.func.vmap(lambda w, x, f=force: f(kind(*w, *rest), x))(weights, x)
            (said - x[:, :, 1:]).square().mean((1, 2, 3)).sum().backward()
            used = [p for p in weights if p.grad is not None]
            norm = sum(p.grad.flatten(1).square().sum(1) for p in used).sqrt()
            norms[step, :, i] = norm
            for p in used:  # at most 1, each seed by itself; what is not finite is left out
                p.grad /= norm.clamp(min=1.0).view(-1, *[1] * (p.ndim - 1))
                p.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
        plan.step()
    found = torch.zeros(seeds, len(forced))
    for i, weights in enumerate(models):
        for seed in range(seeds):
            cell = kind(*(p[seed].detach() for p in weights), *rest)
            run = free_run(cell, truth[:, 0], steps=2000)
            found[seed, i] = state_divergence(run[:, 200:], truth)
    return norms, found, state_divergence(other, truth)


@pytest.fixture(scope="module")
def noisy():
    """Two of Lorenz' three numbers, with noise: alpha 0.15 beside none."""
    forced = [partial(gtf, alpha=0.15), partial(gtf, alpha=0.0)]
    return learn("plrnn", forced, width=10, hidden_ratio=3.0, observed=2, noise=0.05, steps=STEPS)


STEPS = 1000


@pytest.mark.slow
def test_gradients_of_noisy_lorenz_are_smaller_with_forcing(noisy):
    norms = noisy[0][STEPS // 2 :].nan_to_num(torch.inf)
    middle, worst = norms.flatten(0, 1).median(0).values, norms.flatten(0, 1).quantile(0.99, 0)
    print("median", middle.tolist(), "99 in 100", worst.tolist())  # noqa: T201
    assert middle[0] < middle[1] / 2
    assert worst[0] < worst[1] / 2


@pytest.mark.slow
def test_attractors_of_noisy_lorenz_are_better_with_forcing(noisy):
    """Better, and not good: after this little training neither has found the attractor."""
    _, found, other = noisy
    print(found.T.tolist(), "other data", other)  # noqa: T201
    assert found[:, 0].median() < found[:, 1].median(), (found, other)


@pytest.mark.slow
def test_an_al_rnn_wants_some_relu():
    """D_stsp falls as P grows from 0 to 8 of 20 units; after so little training, hardly."""
    found = {}
    for P in (0, 2, 8):
        force = [partial(sparse_tf, every=16)]
        _, found[P], other = learn("al_rnn", force, width=20, relu_units=P, steps=STEPS)
    print({P: d[:, 0].tolist() for P, d in found.items()}, "other data", other)  # noqa: T201
    middle = {P: d.median().item() for P, d in found.items()}
    assert middle[8] < middle[2] < middle[0], (found, other)
