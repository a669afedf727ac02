"""Elman, ParaGRU, ParaLSTM, leaky and piecewise-linear RNNs against their equations."""

import math

import pytest
import torch
from laws import assert_near, reset_law, split_law
from torch import nn

from stepscan.mixers import MIXERS
from stepscan.ops.cells import HiddenState, cell_scan
from stepscan.ops.dynamics_cells import AlmostLinear

WIDTH = 8


def build(name, width=WIDTH, **options):
    return MIXERS[name](**options).build(width).double()


def trajectory(cell, start, T=50):
    """All states of the system without input."""
    x = start.new_zeros(len(start), T, cell.sizes[0])
    return cell_scan(cell, x, state=HiddenState(start))[0]


def test_elman_agrees_with_the_module_of_torch():
    module = nn.RNN(WIDTH, WIDTH, batch_first=True).double()
    mixer, x = build("elman"), torch.randn(2, 30, WIDTH, dtype=torch.float64)
    mixer.load_torch(module)
    want, last = module(x)
    y, state = mixer(x)
    assert_near((y, state.hidden), (want, last[0]), what="outputs")


@pytest.mark.parametrize("name", ["elman", "leaky_rnn", "plrnn", "al_rnn"])
def test_laws_where_the_hidden_width_is_another(name):
    mixer, x = build(name, 4, expansion=1.5), torch.randn(2, 20, 4).double()
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    resets, params = torch.rand(2, 20) < 0.15, list(mixer.parameters())
    assert mixer.init_state(2).hidden.shape == (2, 6)
    split_law(step, (x,), mixer.init_state(2), [0, 1, 9], resets=resets, params=params)
    reset_law(step, (x,), mixer.init_state(2), resets, params=params)


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


@pytest.mark.parametrize("name", ["para_gru", "para_lstm"])
def test_para_cells_follow_their_equations(name):
    """One number at a time; channel e has head e // 4, which sees its own half of x."""
    mixer, x = build(name), torch.randn(1, 12, WIDTH, dtype=torch.float64)
    cell = mixer.cell()
    y, _ = mixer(x)
    a, b = cell.recurrent_weight.tolist(), cell.bias.tolist()
    for e in range(WIDTH):
        h = c = 0.0
        for t in range(12):
            half = slice(e // 4 * 4, e // 4 * 4 + 4)
            into = cell.input_weight[e // 4, :, :, e % 4]  # [inputs of the head, gates]
            u = (x[0, t, half] @ into).tolist()
            if name == "para_gru":
                z = sigmoid(a[0][e] * h + u[0] + b[0][e])
                r = sigmoid(a[1][e] * h + u[1] + b[1][e])
                n = math.tanh(a[2][e] * (r * h) + u[2] + b[2][e])
                h = (1 - z) * h + z * n
            else:
                peep = cell.peephole[:, e].tolist()
                f = sigmoid(a[0][e] * h + peep[0] * c + u[0] + b[0][e])
                c = f * c + (1 - f) * math.tanh(a[1][e] * h + u[1] + b[1][e])
                o = sigmoid(a[2][e] * h + peep[1] * c + u[2] + b[2][e])
                h = o * math.tanh(c)
            assert abs(y[0, t, e].item() - h) < 1e-12


@pytest.mark.parametrize("name", ["para_gru", "para_lstm"])
def test_para_cells_start_as_published(name):
    gates = MIXERS[name](heads=4).build(256).gates
    std = (4 / (5 * 64)) ** 0.5
    for p in (gates.input_weight, gates.recurrent_weight):
        assert abs(p.std().item() / std - 1) < 0.1
    torch.testing.assert_close(gates.bias[0], -torch.linspace(0, 1, 256))
    assert not gates.bias[1:].any()


@pytest.mark.parametrize("name", ["para_gru", "para_lstm"])
def test_a_long_sequence_trained_by_newton_has_the_gradients_of_the_loop(name):
    mixer, x = build(name), torch.randn(2, 300, WIDTH, dtype=torch.float64)
    resets = torch.rand(2, 300) < 0.01
    y, state = mixer(x, None, resets)
    pieces, last = mixer(x[:, :100], None, resets[:, :100])  # too short for rounds to pay
    rest = [pieces]
    for start in (100, 200):
        cut = slice(start, start + 100)
        piece, last = mixer(x[:, cut], last, resets[:, cut])
        rest.append(piece)
    both = [y.square().sum() + state[-1].sum(), torch.cat(rest, 1).square().sum() + last[-1].sum()]
    grads = [torch.autograd.grad(loss, list(mixer.parameters())) for loss in both]
    assert_near(*grads, what="gradients")


def test_a_leaky_unit_relaxes_with_its_time_constant():
    mixer = build("leaky_rnn")
    with torch.no_grad():
        mixer.recurrent_weight.zero_()
        mixer.log_time.copy_(torch.logspace(-1, 6, WIDTH).log())
    x = torch.randn(2, 1, WIDTH, dtype=torch.float64).expand(-1, 40, -1)
    y, _ = mixer(x)
    drive = (x @ mixer.input_weight.mT + mixer.bias).tanh()
    time = torch.arange(1, 41, dtype=torch.float64)[:, None]
    assert_near(y, drive * -torch.expm1(-time / mixer.log_time.exp()), what="relaxation")


def test_a_leaky_network_of_short_time_constants_is_elman():
    leaky, elman = build("leaky_rnn"), build("elman")
    weights = elman.weights
    with torch.no_grad():
        leaky.input_weight.copy_(weights.input_weight)
        leaky.recurrent_weight.copy_(weights.recurrent_weight)
        leaky.bias.copy_(weights.input_bias + weights.recurrent_bias)
        leaky.log_time.fill_(-5.0)
    x = torch.randn(2, 20, WIDTH, dtype=torch.float64)
    assert_near(leaky(x)[0], elman(x)[0], what="outputs")


@pytest.mark.parametrize("name", ["plrnn", "al_rnn"])
def test_jacobians_are_those_of_a_step(name):
    cell = build(name).cell()
    z = torch.randn(5, WIDTH, dtype=torch.float64)
    u = torch.randn(5, WIDTH, dtype=torch.float64)
    step = lambda z: cell.step(u, HiddenState(z))[0].sum(0)  # noqa: E731
    want = torch.autograd.functional.jacobian(step, z).transpose(0, 1)
    assert_near(cell.jacobian(z), want, what="jacobians")


@pytest.mark.parametrize("name", ["plrnn", "al_rnn"])
def test_a_step_is_linear_inside_of_a_region(name):
    cell, u = build(name).cell(), torch.zeros(400, WIDTH, dtype=torch.float64)
    z = torch.randn(400, WIDTH, dtype=torch.float64)
    near = z + 1e-3 * torch.randn_like(z)
    same = (cell.regions(z) == cell.regions(near)).all(1)
    assert same.sum() > 100
    change = cell.step(u, HiddenState(near))[0] - cell.step(u, HiddenState(z))[0]
    want = torch.einsum("bij,bj->bi", cell.jacobian(z), near - z)
    assert_near(change[same], want[same], what="change")


@pytest.mark.parametrize("P", [0, 1, 3])
def test_an_almost_linear_rnn_has_at_most_two_to_the_p_regions(P):
    cell = build("al_rnn", relu_units=P).cell()
    z = trajectory(cell, torch.randn(300, WIDTH, dtype=torch.float64)).flatten(0, 1)
    used = {tuple(signs) for signs in cell.regions(z).tolist()}
    assert min(P, 1) < len(used) <= 2**P
    maps = {tuple(j.flatten().tolist()) for j in cell.jacobian(z)}
    assert len(maps) == len(used)


def test_without_relu_units_it_is_linear_and_cannot_be_chaotic():
    """Two trajectories part by powers of one matrix, so Lyapunov exponents are its eigenvalues'."""
    cell = build("al_rnn", relu_units=0).cell()
    matrix = cell.decay.diag() + cell.recurrent_weight
    start = torch.randn(2, WIDTH, dtype=torch.float64)
    one, other = trajectory(cell, start, T=30)
    want = [torch.linalg.matrix_power(matrix, t) @ (start[1] - start[0]) for t in range(1, 31)]
    assert_near(other - one, torch.stack(want), what="distance")
    largest = torch.linalg.eigvals(matrix).abs().max()
    assert largest <= 1 + 1e-12  # as it starts: no exponent is positive


def test_with_all_units_relu_it_is_the_piecewise_linear_rnn():
    mixer = build("al_rnn", relu_units=WIDTH)
    cell, z = mixer.cell(), torch.randn(3, WIDTH, dtype=torch.float64)
    x = torch.randn(3, 1, WIDTH, dtype=torch.float64)
    got = cell_scan(cell, x, state=HiddenState(z))[0][:, 0]
    want = cell.decay * z + z.relu() @ cell.recurrent_weight.mT + cell.bias
    assert_near(got, want + x[:, 0] @ cell.input_weight.mT, what="step")


def test_a_fixed_point_is_algebra():
    """In the region with open units D: z = (I - A - W D)^-1 h, if it lies in that region."""
    eye, found = torch.eye(4, dtype=torch.float64), 0
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        draw = lambda *shape, rng=rng: torch.randn(shape, generator=rng, dtype=torch.float64) / 2  # noqa: E731
        cell = AlmostLinear(draw(4), draw(4, 4), draw(4), draw(4, 4), 2)
        for signs in ([1, 1], [1, 0], [0, 1], [0, 0]):
            opened = torch.tensor([1, 1, *signs], dtype=torch.float64)
            jacobian = cell.decay.diag() + cell.recurrent_weight * opened
            z = torch.linalg.solve(eye - jacobian, cell.bias)
            if (cell.regions(z) == (opened[2:] > 0)).all():
                found += 1
                y, _ = cell.step(cell.bias[None], HiddenState(z[None]))
                assert_near(y[0], z, what="fixed point")
    assert found > 5


@pytest.mark.parametrize("name", ["plrnn", "al_rnn"])
def test_linear_parts_start_from_a_matrix_of_norm_one(name):
    mixer = build(name, 32)
    assert mixer.decay.min() > 0
    assert mixer.decay.max() < 1
    if name == "al_rnn":
        whole = mixer.decay.diag() + mixer.recurrent_weight
        assert torch.linalg.eigvalsh(whole)[-1].item() == pytest.approx(1, abs=1e-5)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    with pytest.raises(ValueError, match="'RNN_TANH', 8, 8, 1"):
        build("elman").load_torch(nn.GRU(WIDTH, WIDTH))
    for name in ("elman", "leaky_rnn", "plrnn", "al_rnn"):
        with pytest.raises(ValueError, match="leaves a hidden state"):
            build(name, expansion=0.0)
    for name in ("para_gru", "para_lstm"):
        with pytest.raises(ValueError, match="heads=3 must divide width=8"):
            build(name, heads=3)
    with pytest.raises(ValueError, match="relu_units from 0 to 8, got 9"):
        build("al_rnn", relu_units=9)
    with pytest.raises(ValueError, match="leaves a ReLU"):
        build("plrnn", hidden_ratio=0.0)
    with pytest.raises(ValueError, match="longest > 1"):
        build("leaky_rnn", longest=0.5)
