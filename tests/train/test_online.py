"""Online learning against back-propagation through all of time, and against its own definition."""

import pytest
import torch
from torch import nn

from stepscan.mixers import MIXERS
from stepscan.train.online import METHODS, Online

T, WIDTH = 12, 4


def squared(outputs, target):
    return (outputs - target).square().sum()


def stream(steps=T, width=WIDTH, seed=0):
    rng = torch.Generator().manual_seed(seed)
    draw = (torch.randn(1, steps, width, generator=rng, dtype=torch.float64) for _ in range(2))
    return tuple(draw)


def mixer(name, **options):
    torch.manual_seed(0)
    return MIXERS[name](**options).build(WIDTH).double()


def by_unrolling(model, x, target, last):
    """The gradient of the loss of one step, through all steps before it."""
    state = None
    for t in range(last + 1):
        outputs, state = model(x[:, t : t + 1], state)
    loss = squared(outputs, target[:, last : last + 1])
    found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def gradients(model, x, target, method, seed=0):
    learner = Online(model, squared, method=method, seed=seed)
    found = []
    for t in range(x.shape[1]):
        learner.step(x[:, t : t + 1], target[:, t : t + 1])
        found.append(learner.gradient)
    return found


class Diagonal(nn.Module):
    """h = a * h + tanh(x W): numbers of the state never meet."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.decay = nn.Parameter(torch.rand(WIDTH, dtype=torch.float64))
        self.map = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

    def forward(self, x, state=None, resets=None):
        h = x.new_zeros(1, WIDTH) if state is None else state
        h = self.decay * h + torch.tanh(self.map(x[:, 0]))
        return h[:, None], h


@pytest.mark.parametrize(
    ("name", "options"),
    [("elman", {}), ("gru", {}), ("min_gru", {}), ("lru", {}), ("lstm", {}), ("gla", {"heads": 1})],
)
def test_rtrl_is_back_propagation_through_all_of_time(name, options):
    model = mixer(name, **options)
    x, target = stream()
    for t, found in enumerate(gradients(model, x, target, "rtrl")):
        wanted = by_unrolling(model, x, target, t)
        torch.testing.assert_close(found, wanted, atol=1e-8, rtol=1e-8)


def test_without_the_influence_of_the_past_the_check_fails():
    """What truncates after one step is not what unrolling gives."""
    model, (x, target) = mixer("gru"), stream()
    learner = Online(model, squared)
    for t in range(T):
        learner.influence.matrix = None  # forget
        learner.step(x[:, t : t + 1], target[:, t : t + 1])
    assert (learner.gradient - by_unrolling(model, x, target, T - 1)).abs().max() > 1e-3


def test_snap1_is_rtrl_where_numbers_of_the_state_do_not_mix():
    model, (x, target) = Diagonal(), stream()
    pairs = zip(
        gradients(model, x, target, "snap1"), gradients(model, x, target, "rtrl"), strict=True
    )
    for snap, exact in pairs:
        torch.testing.assert_close(snap, exact, atol=1e-12, rtol=1e-12)


def test_snap1_is_an_approximation_where_they_do():
    model, (x, target) = mixer("elman"), stream()
    snap, exact = (gradients(model, x, target, m)[-1] for m in ("snap1", "rtrl"))
    assert (snap - exact).abs().max() > 1e-4
    assert torch.nn.functional.cosine_similarity(snap, exact, dim=0) > 0.5


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_uoro_is_right_in_the_mean(count):
    """The mean of so many draws is within three standard errors of the exact gradient."""
    x, target = stream(3)
    model = Diagonal()
    exact = gradients(model, x, target, "rtrl")[-1]
    total, squares = torch.zeros_like(exact), torch.zeros_like(exact)
    for seed in range(count):
        found = gradients(model, x, target, "uoro", seed)[-1]
        total, squares = total + found, squares + found.square()
    mean = total / count
    error = ((squares / count - mean.square()).clamp(min=0) / count).sqrt()
    random = error > 1e-12  # the others are exact
    far = (mean - exact)[random].abs() / error[random]
    assert len(far) > 10
    assert far.max() < 3.0
    torch.testing.assert_close(mean[~random], exact[~random], atol=1e-7, rtol=1e-7)


def test_a_synthetic_gradient_learns_what_the_future_asks():
    """A state that is asked for one step later: without the word of the future nothing learns."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.into = nn.Parameter(torch.full((1,), 0.3, dtype=torch.float64))

        def forward(self, x, state=None, resets=None):
            h = x.new_zeros(1, 1) if state is None else state
            return h[:, None], self.into * x[:, 0]

    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1000, 1, generator=rng, dtype=torch.float64).sign()
    model = Late()
    learner = Online(model, squared, torch.optim.SGD(model.parameters(), lr=0.05), method="dni")
    learner.influence.rate = 0.1
    for t in range(1, x.shape[1]):
        learner.step(x[:, t : t + 1], x[:, t - 1 : t])
    assert abs(model.into.item() - 1) < 0.15
    still = Late()
    none = Online(still, squared, torch.optim.SGD(still.parameters(), lr=0.1), method="dni")
    none.influence.rate = 0.0
    for t in range(1, x.shape[1]):
        none.step(x[:, t : t + 1], x[:, t - 1 : t])
    assert still.into.item() == 0.3


@pytest.mark.parametrize("method", METHODS)
def test_learning_lowers_the_loss_of_a_stream(method):
    """A GRU learns the next value of a sine, one pass, one step at a time."""
    torch.manual_seed(0)

    class Next(nn.Module):
        def __init__(self):
            super().__init__()
            self.into = nn.Linear(1, 6, dtype=torch.float64)
            self.cell = MIXERS["gru"]().build(6).double()
            self.out = nn.Linear(6, 1, dtype=torch.float64)

        def forward(self, x, state=None, resets=None):
            y, state = self.cell(self.into(x), state)
            return self.out(y), state

    model = Next()
    wave = torch.sin(torch.arange(500, dtype=torch.float64) / 4)[None, :, None]
    learner = Online(model, squared, torch.optim.Adam(model.parameters(), 1e-2), method=method)
    losses = [learner.step(wave[:, t : t + 1], wave[:, t + 1 : t + 2])[1] for t in range(200)]
    assert sum(losses[-30:]) < 0.2 * sum(losses[:30])


def test_what_cannot_be_learned_online_is_refused():
    x, target = stream()
    grows = mixer("attention", heads=1)
    learner = Online(grows, squared)
    learner.step(x[:, :1], target[:, :1])
    with pytest.raises(ValueError, match="grows with the sequence"):
        learner.step(x[:, 1:2], target[:, 1:2])
    rows = Online(mixer("gru"), squared)
    rows.step(x[:, :1].expand(2, -1, -1), target[:, :1])
    with pytest.raises(ValueError, match="want one row, got 2"):
        rows.step(x[:, :1].expand(2, -1, -1), target[:, :1])
    with pytest.raises(ValueError, match="unknown online method 'rtl'"):
        Online(grows, squared, method="rtl")
