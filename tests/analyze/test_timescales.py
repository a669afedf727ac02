"""Autocorrelation times of processes that have known ones."""

import math

import pytest
import torch

from stepscan.analyze.timescales import autocorrelation, autocorrelation_times, state_timescales
from stepscan.mixers import MIXERS
from stepscan.mixers.leaky_rnn import LeakyRNNConfig
from stepscan.ops.linear_scan import linear_scan


def leaky(rates, rows=16, steps=20_000, seed=0):
    """x_t = a x_{t-1} + noise: r(d) = a^d."""
    noise = torch.randn(
        rows, steps, len(rates), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    a = torch.tensor(rates, dtype=torch.float64).expand_as(noise)
    return linear_scan(a, noise)[0][:, 500:]


def test_the_autocorrelation_of_a_leaky_process():
    r = autocorrelation(leaky([0.5, 0.9]), 8)
    lags = torch.arange(9, dtype=torch.float64)
    want = torch.stack([0.5**lags, 0.9**lags], 1)
    torch.testing.assert_close(r, want, atol=0.02, rtol=0)


def test_times_are_those_of_the_leak():
    rates = [0.3, 0.8, 0.95, 0.98]
    times = autocorrelation_times(leaky(rates), lags=400)
    assert times.tolist() == pytest.approx([-1 / math.log(a) for a in rates], rel=0.1)


def test_two_time_constants_are_told_apart():
    """A broken estimate would say the same of both."""
    short, long = autocorrelation_times(leaky([0.8, 0.9]), lags=400).tolist()
    assert long / short == pytest.approx(math.log(0.8) / math.log(0.9), rel=0.1)


def test_noise_has_no_memory_and_a_constant_no_time():
    x = leaky([0.0, 0.5])
    x[..., 1] = 3.0
    noise, constant = autocorrelation_times(x).tolist()
    assert noise < 0.3
    assert math.isnan(constant)


def test_lags_longer_than_the_signal_are_refused():
    with pytest.raises(ValueError, match="lags from 1 to 9"):
        autocorrelation(torch.zeros(1, 10, 1), 10)


def test_units_of_a_mixer_have_the_time_constants_of_its_weights():
    """Leaky units without connections: h = a h + (1 - a) tanh(W x), a = exp(-1 / tau)."""
    torch.manual_seed(0)
    mixer, tau = LeakyRNNConfig().build(4), torch.tensor([2.0, 5.0, 15.0, 40.0])
    with torch.no_grad():
        mixer.log_time.copy_(tau.log())
        mixer.recurrent_weight.zero_()
    found = state_timescales(mixer, 4, torch.Generator().manual_seed(0), rows=32, lags=200)
    (times,) = found.values()
    assert times.tolist() == pytest.approx(tau.tolist(), rel=0.2)


def test_a_mixer_that_reads_both_ways_has_no_time():
    with pytest.raises(ValueError, match="causal"):
        state_timescales(MIXERS["hydra"]().build(16), 16, torch.Generator())
