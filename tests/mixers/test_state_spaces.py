"""LSSL, S4 and S5 against their equations, and what their papers promise, on small signals."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from laws import assert_near, reset_law, split_law
from torch import nn
from torch.nn import functional as F

from stepscan.mixers.lssl import LSSLConfig
from stepscan.mixers.s4 import S4Config
from stepscan.mixers.s4d import S4DConfig
from stepscan.mixers.s5 import S5Config
from stepscan.ops.dplr_conv import dplr_conv
from stepscan.ops.hippo import MEASURES
from stepscan.tasks.delay import Delay

FAMILY = (LSSLConfig, S4Config, S4DConfig, S5Config)


def numbers(mixer):
    return {name: value.detach().numpy() for name, value in mixer.named_parameters()}


def gelu(y):
    return 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))


def sigmoid(y):
    return 1 / (1 + np.exp(-y))


def lssl_by_hand(mixer, x):
    p = numbers(mixer)
    eye, h, ys = np.eye(len(p["B"])), np.zeros(p["readout"].shape), []
    for x_t in x:
        y = p["skip"] * x_t
        for d, dt in enumerate(np.exp(p["log_step"])):
            right = (eye + dt / 2 * p["A"]) @ h[d] + dt * p["B"] * x_t[d]
            h[d] = np.linalg.solve(eye - dt / 2 * p["A"], right)
            y[d] += p["readout"][d] @ h[d]
        ys.append(p["out.weight"] @ gelu(y) + p["out.bias"])
    return np.stack(ys)


def s4_by_hand(mixer, x):
    """With each number beside its conjugate, as a dense complex matrix."""
    p, ys = numbers(mixer), []
    pairs = lambda w: np.concatenate([w[..., 0] + 1j * w[..., 1], w[..., 0] - 1j * w[..., 1]], -1)  # noqa: E731
    P, B, C = (pairs(p[name]) for name in ("low_rank", "write", "readout"))
    values = np.stack([-np.exp(p["log_decay"]), p["frequency"]], -1)
    Lambda, h = pairs(values), np.zeros(B.shape, dtype=complex)
    eye = np.eye(B.shape[1])
    for x_t in x:
        y = p["skip"] * x_t
        for d, dt in enumerate(np.exp(p["log_step"])):
            A = np.diag(Lambda[d]) - P[d].T @ P[d].conj()
            right = (eye + dt / 2 * A) @ h[d] + dt * B[d] * x_t[d]
            h[d] = np.linalg.solve(eye - dt / 2 * A, right)
            assert abs((C[d] @ h[d]).imag) < 1e-9
            y[d] += (C[d] @ h[d]).real
        value, gate = np.split(p["out.weight"] @ gelu(y) + p["out.bias"], 2)
        ys.append(value * sigmoid(gate))
    return np.stack(ys)


def s5_by_hand(mixer, x, intervals):
    p, ys = numbers(mixer), []
    Lambda = -np.exp(p["log_decay"]) + 1j * p["frequency"]
    B, C = (p[name][0] + 1j * p[name][1] for name in ("write", "read"))
    h = np.zeros_like(Lambda)
    for x_t, interval in zip(x, intervals, strict=True):
        a = np.exp(interval * np.exp(p["log_step"]) * Lambda)
        h = a * h + (a - 1) / Lambda * (B @ x_t)
        y = gelu(2 * (C @ h).real + p["skip"] * x_t)
        ys.append(y * sigmoid(p["gate.weight"] @ y + p["gate.bias"]))
    return np.stack(ys)


@pytest.mark.parametrize(
    ("config", "by_hand"),
    [
        (LSSLConfig(state_size=6), lssl_by_hand),
        (S4Config(state_size=6), s4_by_hand),
        (S4Config(state_size=6, init="legt"), s4_by_hand),
    ],
    ids=["lssl", "s4", "s4-legt"],
)
def test_follows_the_published_recurrence(config, by_hand):
    mixer, x = config.build(3).double(), torch.randn(2, 40, 3, dtype=torch.float64)
    want = np.stack([by_hand(mixer, row) for row in x.numpy()])
    assert_near(mixer(x)[0], torch.tensor(want), what="outputs")


def test_s5_follows_the_published_recurrence_at_irregular_times():
    mixer, x = S5Config(state_size=8, blocks=2).build(3).double(), torch.randn(2, 40, 3).double()
    for intervals in (torch.ones(2, 40).double(), 0.1 + 2 * torch.rand(2, 40).double()):
        want = [s5_by_hand(mixer, *row) for row in zip(x.numpy(), intervals.numpy(), strict=True)]
        assert_near(mixer(x, intervals=intervals)[0], torch.tensor(np.stack(want)), what="outputs")
    assert torch.equal(mixer(x)[0], mixer(x, intervals=torch.ones(2, 40).double())[0])
    half = S5Config(state_size=8, blocks=2, step_rescale=0.5).build(3).double()
    half.load_state_dict(mixer.state_dict())
    assert_near(half(x)[0], mixer(x, intervals=torch.full((2, 40), 0.5).double())[0], what="half")


def test_s5_reads_what_it_writes_as_the_dense_system_would():
    """V^* B and C V are B and C in eigenvectors: at once after the first input, y = Re(C B) u."""
    mixer = S5Config(state_size=64, blocks=4).build(8).double()
    p = numbers(mixer)
    B, C = (p[name][0] + 1j * p[name][1] for name in ("write", "read"))
    assert abs(np.abs(B).mean() ** 2 * 8 * 4 / math.pi - 1) < 0.2  # a part of variance 1 / (2 D)
    assert 0.3 < (2 * (C @ B).real).std() < 2


@pytest.mark.parametrize("measure", MEASURES)
def test_s4_starts_as_its_measure_and_its_forms_are_one(measure):
    mixer, u = S4Config(state_size=16, init=measure).build(3), torch.randn(2, 100, 3)
    mixer = mixer.double()
    u = u.double()
    ys = [dplr_conv(u, mixer.system(), form=form)[0] for form in ("recurrent", "chunked", "fft")]
    assert_near(ys[1], ys[0], what="chunked")
    assert_near(ys[2], ys[0], what="fft")


@pytest.mark.parametrize("config", [S4Config(), LSSLConfig(), LSSLConfig(init="random")], ids=str)
def test_laws_over_several_chunks(config):
    mixer, x = config.build(4).double(), torch.randn(2, 75, 4, dtype=torch.float64)
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    resets, params = torch.rand(2, 75) < 0.05, list(mixer.parameters())
    split_law(step, (x,), mixer.init_state(2), [5, 5, 40], resets=resets, params=params)
    reset_law(step, (x,), mixer.init_state(2), resets, params=params)


@pytest.mark.parametrize("config", FAMILY)
def test_published_exemptions_are_parameters(config):
    mixer = config().build(8)
    assert set(mixer.no_decay) | set(mixer.slow) <= dict(mixer.named_parameters()).keys()
    steps = mixer.log_step.exp()
    assert 1e-3 <= steps.min()
    assert steps.max() <= 0.1


@pytest.mark.parametrize("config", FAMILY)
def test_half_the_sampling_rate_wants_twice_the_step(config):
    """Of a slow signal, a system with doubled steps says the same at every second token."""
    full = config(state_size=16, step_min=0.001, step_max=0.01).build(4).double()
    half = dataclasses.replace(full.config, step_rescale=2.0).build(4).double()
    half.load_state_dict(full.state_dict())
    t = torch.arange(400, dtype=torch.float64) / 400
    x = torch.sin(2 * math.pi * t[None, :, None] * torch.arange(1, 5)) * t[None, :, None]
    want, got = full(x)[0][:, 1::2], half(x[:, 1::2])[0]
    wrong = full(x[:, 1::2])[0]
    assert (got - want).norm() < 0.05 * (wrong - want).norm()


@pytest.mark.plain
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LSSLConfig(state_size=1), "want state_size at least 2"),
        (LSSLConfig(init="leg"), "Did you mean 'legt' or 'legs'"),
        (LSSLConfig(discretization="zho"), "Did you mean 'zoh'"),
        (S4Config(state_size=5), "want an even state_size"),
        (S4Config(step_rescale=0.0), "want step_rescale above 0"),
        (S4Config(init="random"), "init of s4"),
        (S5Config(state_size=12, blocks=4), "an even number for each of the blocks"),
        (S5Config(step_max=1e-4), "want 0 < step_min <= step_max"),
        (S4DConfig(init="log"), "initial A"),
    ],
    ids=str,
)
def test_errors_say_what_to_fix(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(16)


# Trained ------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Real numbers in and out, with one mixer between two linear maps."""

    def __init__(self, config, width, outputs):
        super().__init__()
        self.inputs, self.outputs = nn.Linear(1, width), nn.Linear(width, outputs)
        self.mixer = config.build(width)

    def forward(self, x):
        return self.outputs(self.mixer(self.inputs(x))[0])


class GRU(nn.Module):
    """The same with torch's GRU."""

    def __init__(self, width, outputs):
        super().__init__()
        self.mixer, self.outputs = nn.GRU(1, width, batch_first=True), nn.Linear(width, outputs)

    def forward(self, x):
        return self.outputs(self.mixer(x)[0])


def train(model, loss, steps, rate=1e-2):
    """Adam; what the mixer calls slow at a tenth. The last loss, averaged."""
    slow = {id(dict(model.mixer.named_parameters())[n]) for n in getattr(model.mixer, "slow", ())}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in slow], "lr": rate},
        {"params": [p for p in model.parameters() if id(p) in slow], "lr": min(rate, 1e-3)},
    ]
    optimizer, last = torch.optim.Adam([g for g in groups if g["params"]]), []
    plan = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [g["lr"] for g in groups if g["params"]], total_steps=steps, pct_start=0.1
    )
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plan.step()
        last = [*last[-9:], value.item()]
    return sum(last) / len(last)


def chirps(n, rng, T=400):
    """Sweeps that start in one of six bands, half an octave apart."""
    label = torch.randint(6, (n,), generator=rng)
    start = 3 * 2 ** ((label + 0.6 * torch.rand(n, generator=rng)) / 2)
    sweep = 1 + 0.3 * torch.rand(n, generator=rng)
    t = torch.arange(T) / T
    phase = torch.rand(n, 1, generator=rng) + start[:, None] * (t + (sweep[:, None] - 1) * t**2 / 2)
    x = torch.sin(2 * math.pi * phase) + 0.1 * torch.randn(n, T, generator=rng)
    return x[..., None], label


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_lssl_moves_to_half_the_sampling_rate(seed):
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    config = LSSLConfig(state_size=32, step_min=0.003)
    model = Small(config, 24, 6)

    def loss(model):
        x, label = chirps(32, rng)
        return F.cross_entropy(model(x).mean(1), label)

    train(model, loss, 400)
    x, label = chirps(1000, rng)
    accuracy = lambda m, x: (m(x).mean(1).argmax(-1) == label).float().mean().item()  # noqa: E731
    doubled = Small(dataclasses.replace(config, step_rescale=2.0), 24, 6)
    doubled.load_state_dict(model.state_dict())
    with torch.no_grad():
        full, half, wrong = (
            accuracy(model, x),
            accuracy(doubled, x[:, ::2]),
            accuracy(model, x[:, ::2]),
        )
    assert half > full - 0.03, (full, half, wrong)
    assert wrong < full - 0.15, (full, half, wrong)
    assert full > 0.8, (full, half, wrong)


def copying(T, lag, shortest, rows, rng):
    """A loss: to say what came `lag` steps ago."""
    task = Delay(length=T, lag=lag, shortest=shortest)

    def loss(model):
        batch = task.draw(rows, rng)
        return (model(batch.input)[batch.asked] - batch.target[batch.asked]).square().mean()

    return loss


@pytest.mark.slow
def test_s4_copies_what_came_a_thousand_steps_ago_and_a_gru_does_not():
    found = []
    s4 = Small(S4Config(init="fout", step_min=6e-4, step_max=9e-4), 8, 1)
    size = sum(p.numel() for p in s4.parameters())
    gru = GRU(round((size / 3) ** 0.5 - 1), 1)
    assert abs(sum(p.numel() for p in gru.parameters()) / size - 1) < 0.1
    for model in (s4, gru):
        rng = torch.Generator().manual_seed(0)
        found.append(train(model, copying(2000, 1000, 50, 8, rng), 400))
    assert found[0] <= 0.05, found
    assert found[1] >= 0.5, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_hippo_learns_to_copy_twice_as_well_as_a_random_system(seed):
    found = []
    for init in ("legs", "random"):
        torch.manual_seed(seed)
        rng = torch.Generator().manual_seed(seed)
        model = Small(LSSLConfig(state_size=32, init=init, step_min=0.005, step_max=0.02), 8, 1)
        found.append(train(model, copying(300, 100, 20, 16, rng), 400))
    assert found[0] <= found[1] / 2, found
