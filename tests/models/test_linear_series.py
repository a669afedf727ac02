"""Linear models of series: the published maps, the laws of a model, the checks of row 56."""

import time

import numpy as np
import pytest
import torch
from laws import causal_law, live_law, reset_law, rows_law, split_law, state_law

from stepscan import state as states
from stepscan.data.base import Packed
from stepscan.layers import costs
from stepscan.models import (
    Forecast,
    LinearSeriesConfig,
    ModelConfig,
    NextToken,
    Regress,
    build,
    load_folder,
    read_config,
    save_folder,
)
from stepscan.models.linear_series import MAPS, sparse_cost
from stepscan.train.config import TrainConfig
from stepscan.train.loop import Trainer

T, HORIZON, WINDOW = 14, 3, 6
every_map = pytest.mark.parametrize("name", MAPS)


def make(name, window=WINDOW, head=None, **options):
    head = head or Forecast(horizon=HORIZON, measured="level")
    return LinearSeriesConfig(name=name, head=head, reals=4, window=window, smooth=3, **options)


def scrambled(config):
    """A model whose weights mean nothing, so that every one of them is seen."""
    model = build(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    return model


def setup(config):
    model = scrambled(config)
    reals = torch.randn(2, T, 4, dtype=torch.float64)
    reals[..., 1] = torch.rand(2, T) < 0.2
    reals[..., 0].masked_fill_(reals[..., 1] > 0, 0.0)

    def step(xs, state, resets):
        return model(xs[0], state, resets)

    state = states.detach(step((reals,), None, None)[1])
    return model, step, (reals,), state, torch.rand(2, T) < 0.15, list(model.parameters())


@every_map
@pytest.mark.parametrize("window", [1, 2, WINDOW, 40])
def test_split_reset_and_rows_laws(name, window):
    _, step, xs, state, resets, params = setup(make(name, window))
    for cuts in ([0, 5], [3, 3, 9, T], list(range(1, T))):
        split_law(step, xs, state, cuts, resets=resets, params=params)
    reset_law(step, xs, state, resets, params=params)
    rows_law(step, xs, state, resets=resets, params=params)


@every_map
def test_causal_and_state_laws(name, tmp_path):
    model, step, xs, state, *_ = setup(make(name))
    causal_law(lambda xs, s, r: step((_plain(xs[0]),), s, r), xs, 9)
    state_law(step, xs, state, tmp_path / "state")
    assert model.causal


def _plain(reals):
    """Nothing missing: the law puts random numbers where the flag is."""
    flag = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=reals.dtype)
    return reals * flag


@every_map
def test_every_weight_learns(name):
    live_law(build(make(name)), _plain(torch.randn(2, T, 4)))


@every_map
def test_the_map_is_the_published_one(name):
    """Against plain arithmetic on one window."""
    model = scrambled(make(name, head=Regress(outputs=HORIZON)))
    x = torch.randn(WINDOW, dtype=torch.float64)
    reals = torch.zeros(1, WINDOW, 4, dtype=torch.float64)
    reals[0, :, 0] = x
    y = model(reals)[0][0, -1]
    if name in ("linear", "ar"):
        want = model.map.map.weight @ x + model.map.map.bias
    elif name == "nlinear":
        want = model.map.map.weight @ (x - x[-1]) + x[-1] + model.map.map.bias
    else:
        edges = torch.cat([x[:1], x, x[-1:]])
        mean = torch.stack([edges[i : i + 3].mean() for i in range(WINDOW)])
        want = (
            model.map.trend.weight @ mean
            + model.map.trend.bias
            + model.map.rest.weight @ (x - mean)
            + model.map.rest.bias
        )
    torch.testing.assert_close(y, want)
    zero = model(torch.zeros_like(reals))[0][0, -1]
    torch.testing.assert_close(model.coefficients() @ x.flip(0) + zero, want)


def test_what_is_missing_repeats_the_last_value_and_a_beginning_its_first():
    model = scrambled(make("linear", head=Regress(outputs=1)))
    seen = torch.tensor([2.0, 0.0, 0.0, 5.0, 0.0], dtype=torch.float64)
    reals = torch.zeros(1, 5, 4, dtype=torch.float64)
    reals[0, :, 0] = seen
    reals[0, :, 1] = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    y, state = model(reals)
    window = torch.tensor([2.0, 2.0, 2.0, 2.0, 5.0, 5.0], dtype=torch.float64)
    want = model.map.map.weight @ window + model.map.map.bias
    torch.testing.assert_close(y[0, -1], want)
    torch.testing.assert_close(state.values[0], window[1:])


@pytest.mark.parametrize("name", ["nlinear", "linear"])
def test_level_shift(name):
    """Row 57: what NLinear says moves with the level, to 1e-5; Linear is what this must catch."""
    torch.manual_seed(0)
    model = build(make(name, head=Regress(outputs=HORIZON)))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    reals = _plain(torch.randn(1, T, 4))
    higher = reals.clone()
    higher[..., 0] += 7.0
    moved = (model(higher)[0] - model(reals)[0] - 7.0).abs().max()
    assert (moved < 1e-5 * 7) == (name == "nlinear")


def test_saved_and_read_again(tmp_path):
    config = make("ar", sparsity=0.1)
    assert read_config(config.to_dict()) == config
    model = scrambled(config).float().eval()
    again, extra = load_folder(save_folder(model, tmp_path / "model", extra={"a": 1}))
    reals = _plain(torch.randn(2, T, 4))
    assert torch.equal(again(reals)[0], model(reals)[0])
    assert extra == {"a": 1}
    plain = ModelConfig(head=NextToken(vocab=3), tokens=(3,), width=16, layers="gla")
    assert read_config(plain.to_dict()) == plain


@pytest.mark.plain
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "dlinaer"}, "Did you mean 'dlinear'"),
        ({"window": 0}, "want window from 1"),
        ({"sparsity": 0.1}, "sparsity belongs to ar"),
        ({"name": "ar", "sparsity": 2.0}, "between 0 and 1"),
        ({"head": NextToken(vocab=3)}, "wants the head forecast"),
        ({"reals": 1}, "want reals from 2"),
    ],
)
def test_bad_options_are_named(options, said):
    known = {"name": "linear", "head": Regress(outputs=1), "reals": 2}
    with pytest.raises(ValueError, match=said):
        LinearSeriesConfig(**known | options)
    with pytest.raises(ValueError, match="unknown family of models"):
        read_config({"family": "linear_serie"})


# Row 56: AR-Net


def ar_series(coefficients, steps, seed):
    """An autoregression driven by unit noise; `coefficients` by lag."""
    rng = np.random.default_rng(seed)
    order = max(coefficients)
    y = np.zeros(steps + 500)
    noise = rng.normal(size=len(y))
    for t in range(order, len(y)):
        y[t] = sum(a * y[t - lag] for lag, a in coefficients.items()) + noise[t]
    return y[500:]


def packed(y, order):
    """Stretches of the series: the value to come is asked for where the window is full."""
    target = torch.full((len(y), 1), torch.nan)
    target[order - 1 : -1, 0] = torch.from_numpy(y[order:])
    reals = torch.zeros(len(y), 2)
    reals[:, 0] = torch.from_numpy(y)
    starts = torch.zeros(len(y), dtype=torch.bool)
    starts[0] = True
    return Packed(starts, reals=reals, targets={"value": target})


def train_ar(y, order, *, steps, seed=0, rate=2e-2, **options):
    torch.manual_seed(seed)
    config = LinearSeriesConfig(
        name="ar", head=Regress(outputs=1), reals=2, window=order, **options
    )
    model = build(config)
    with torch.no_grad():
        model.map.map.weight.zero_()
    plan = TrainConfig(
        steps=steps, rows=1, length=len(y), carry=True, learning_rate=rate, seed=seed, clip=1e3
    )
    with Trainer(model, packed(y, order), plan) as trainer:
        trainer.advance()
    return model


def least_squares(y, order):
    """With an intercept; lag 1 first."""
    rows = np.lib.stride_tricks.sliding_window_view(y, order)[:-1]
    found, *_ = np.linalg.lstsq(np.column_stack([np.ones(len(rows)), rows]), y[order:], rcond=None)
    return found[1:][::-1]


def test_the_sparse_cost_is_the_papers():
    """0 at 0, even, below 1, and with a finite slope at 0; by hand at one weight."""
    cost = lambda w: float(sparse_cost(torch.tensor([[w]], dtype=torch.float64)))  # noqa: E731
    assert cost(0.0) == 0
    assert (
        cost(0.3)
        == cost(-0.3)
        == pytest.approx(2 / (1 + np.exp(-3 * (0.301 ** (1 / 3) - 0.001 ** (1 / 3)))) - 1)
    )
    assert cost(0.3) == pytest.approx(2 / (1 + np.exp(-3 * 0.3 ** (1 / 3))) - 1, abs=0.1)
    assert 0.9 < cost(20.0) < 1
    with costs.collect() as found:
        build(make("ar", sparsity=0.2))(torch.randn(1, 5, 4))
    assert [(c.name, c.weight) for c in found] == [("sparse", pytest.approx(0.04))]
    with costs.collect() as found:
        build(make("ar"))(torch.randn(1, 5, 4))
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ar_learns_the_coefficients_of_least_squares(seed):
    """AR(10), 6,000 points: every coefficient within 1e-2 of least squares on the same series."""
    rng = np.random.default_rng(seed)
    wild = rng.normal(size=10)
    true = dict(enumerate(0.9 * wild / np.abs(wild).sum(), 1))
    y = ar_series(true, 6000, seed)
    y = y / y.std()
    model = train_ar(y, 10, steps=400, seed=seed)
    distance = np.abs(model.coefficients()[0].numpy() - least_squares(y, 10)).max()
    print(f"seed {seed}: largest distance {distance:.1e}")  # noqa: T201
    assert distance <= 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sparse_ar_finds_the_lags(seed):
    """3 of 50 lags are real; the order is not given, one lag in 33 is expected to matter. F1 of the
    lags with a coefficient above 0.02 at least 0.9. The paper's penalty lets chance correlations of
    3 standard errors live if more lags are expected: at 0.1 the F1 was 0.75 to 1.
    """
    true = {3: 0.3, 17: -0.3, 41: 0.3}
    y = ar_series(true, 6000, seed)
    y = y / y.std()
    how = {"steps": 500, "rate": 5e-3, "seed": seed}
    weight = train_ar(y, 50, **how, sparsity=0.03).coefficients()[0].numpy()
    found = set(np.flatnonzero(np.abs(weight) > 0.02) + 1)
    dense = train_ar(y, 50, **how).coefficients()[0].numpy()
    without = set(np.flatnonzero(np.abs(dense) > 0.02) + 1)
    scores = [2 * len(lags & set(true)) / (len(lags) + len(true)) for lags in (found, without)]
    print(f"seed {seed}: F1 {scores[0]:.2f}, without the regulariser {scores[1]:.2f}")  # noqa: T201
    assert scores[0] >= 0.9
    assert scores[1] < 0.9, "the regulariser would not be needed"


@pytest.mark.slow
def test_cost_against_the_order():
    """A pass over 20,000 values costs about as the order grows; the normal equations as its square.

    Slopes of log time over log order, 100 to 1,000: at most 1.2, and at least 1.8 where the matrix
    of lags is squared and solved.
    """
    y = np.random.default_rng(0).normal(size=4_000)
    orders = (100, 200, 400, 700, 1000)
    ours, theirs = [], []
    for order in orders:
        model = build(LinearSeriesConfig(name="ar", head=Regress(outputs=1), reals=2, window=order))
        reals = torch.zeros(1, len(y), 2)
        reals[0, :, 0] = torch.from_numpy(y)
        rows = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(y, order)[:-1])
        ours.append(_fastest(lambda: model(reals)[0].square().mean().backward()))  # noqa: B023
        theirs.append(_fastest(lambda: np.linalg.solve(rows.T @ rows, rows.T @ y[order:])))  # noqa: B023
    slopes = [np.polyfit(np.log(orders), np.log(times), 1)[0] for times in (ours, theirs)]
    print(f"slope {slopes[0]:.2f}, least squares {slopes[1]:.2f}")  # noqa: T201
    assert slopes[0] <= 1.2
    assert slopes[1] >= 1.8


def _fastest(run):
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
