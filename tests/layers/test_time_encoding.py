"""The encoding of times, against sums written out; the calendar, against the standard library."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch

from stepscan.data.clock import components
from stepscan.layers.time_encoding import BUCKETS, COLUMNS, PARTS, Mercer, TimeEncoding, bucket
from stepscan.models import Inputs, ModelConfig, NextItem, SequenceModel


def test_the_parts_of_the_calendar_are_those_of_the_standard_library():
    moments = [
        datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=7919 * n + n * n) for n in range(60)
    ]
    moments += [datetime(2021, 1, 3, 23, tzinfo=UTC), datetime(2020, 12, 31, tzinfo=UTC)]
    stamps = np.array([int(m.timestamp()) for m in moments]) * 1_000_000_000
    for found, m in zip(components(stamps), moments, strict=True):
        _, week, weekday = m.isocalendar()
        day = m.timetuple().tm_yday
        assert found.tolist() == [m.year, m.month, m.day, weekday, day, week, m.hour]
    assert components(stamps[:0]).shape == (0, PARTS)


def test_the_encoding_is_the_sum_of_its_waves():
    torch.manual_seed(0)
    made = Mercer(2, 3, 2).double()
    t = torch.tensor([[3.0, 11.0]], dtype=torch.float64)
    found = made(t)
    for n in range(2):
        for d in range(3):
            period = 10 ** made.periods[n, d].item()
            want = 0.0
            for k in (1, 2):
                angle = k * t[0, n].item() / period
                want += made.weight[n, d, k - 1].item() * math.sin(angle)
                want += made.weight[n, d, 2 + k - 1].item() * (math.cos(angle) - 1)
            assert found[0, n, d].item() == pytest.approx(want)
    assert made.periods[0].tolist() == pytest.approx([0, 4, 8])
    found.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_buckets_are_four_to_a_doubling_and_end():
    since = torch.tensor([0.0, 0.01, 1.0, 2.0, 4.0, 1e30])
    found = bucket(since).tolist()
    assert found[0] == found[1] == 0
    assert found[2] == math.floor(4 * math.log2(17))
    assert found[4] - found[3] == 4
    assert found[-1] == BUCKETS - 1


def test_a_time_that_is_not_known_says_nothing():
    torch.manual_seed(0)
    made = TimeEncoding(COLUMNS, 8)
    torch.nn.init.normal_(made.map.bias)
    torch.nn.init.normal_(made.gain)
    items = torch.randn(1, 2, 8)
    unknown = torch.zeros(1, 2, COLUMNS)
    assert torch.equal(made(items, unknown), items)
    known = unknown.clone()
    known[..., 0] = 1
    known[0, 1, -1] = 5.0
    said = made(items, known)
    for t in range(2):
        context = made.map(made.parts(known[0, t, 1:-1]).flatten())
        since = made.scale * made.since.weight[int(bucket(known[0, t, -1]))]
        sizes = [x.square().mean().sqrt() for x in (items[0, t], context)]
        want = items[0, t] + since + sizes[0] * made.gain * context / sizes[1]
        torch.testing.assert_close(said[0, t], want)
    one = made(items[:, :1].expand(1, 2, 8), known)
    assert not torch.allclose(one[0, 0], one[0, 1]), "the time since counts"


def test_a_model_reads_it_beside_the_items():
    torch.manual_seed(0)
    config = ModelConfig(
        head=NextItem(vocab=5), layers="min_gru", width=8, tokens=(5,), reals=COLUMNS, clock=True
    )
    assert ModelConfig.from_dict(config.to_dict()) == config
    model = SequenceModel(config)
    items = torch.randint(0, 5, (1, 3, 1))
    reals = torch.rand(1, 3, COLUMNS)
    bare = model.embed.scale * model.embed.tables[0](items[..., 0])
    want = model.embed.reals(bare, reals)
    torch.testing.assert_close(model.embed(Inputs(items, reals)), want)
    with pytest.raises(ValueError, match="want tokens and reals=9 with a clock, got 2"):
        ModelConfig(head=NextItem(vocab=5), layers="gla", tokens=(5,), reals=2, clock=True)


def test_times_do_not_drown_the_items():
    """However large the map of the calendar has grown: as the item, times the factor."""
    torch.manual_seed(0)
    made = TimeEncoding(COLUMNS, 64)
    torch.nn.init.zeros_(made.since.weight)
    items = 0.02 * torch.randn(1, 50, 64)
    reals = torch.rand(1, 50, COLUMNS) * 30
    reals[..., 0] = 1
    for factor in (1, 1000):
        with torch.no_grad():
            made.map.weight.mul_(factor)
        added = made(items, reals) - items
        share = added.square().mean(-1).sqrt() / items.square().mean(-1).sqrt()
        torch.testing.assert_close(share, torch.full((1, 50), 0.3), atol=1e-3, rtol=0)
