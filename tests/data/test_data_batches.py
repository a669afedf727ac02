import pytest
import torch

from stepscan.data import Packed, draw, places, walk

LENGTHS = ([7], [1, 1, 1], [5, 1, 8, 6, 2], [64] * 5)


def packed(lengths):
    """Every step tells its own position: as token, as real and as target."""
    total = sum(lengths)
    starts = torch.zeros(total, dtype=torch.bool)
    starts[torch.tensor([0, *lengths[:-1]]).cumsum(0)] = True
    at = torch.arange(total)
    targets = {"token": at.int(), "future": at[:, None].float().repeat(1, 2)}
    return Packed(starts, tokens=at[:, None].short(), reals=at[:, None].float(), targets=targets)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("rows", "length"), [(1, 4), (3, 1), (2, 5), (8, 100)])
def test_walk_reads_each_step_once_in_order_of_its_sequence(lengths, rows, length):
    data = packed(lengths)
    lanes = torch.cat(list(places(data, rows=rows, length=length)), 1)
    assert sorted(lanes[lanes >= 0].tolist()) == list(range(len(data)))
    assert len(lanes) == min(rows, len(lengths))
    before = torch.cat([torch.full((len(lanes), 1), -1), lanes[:, :-1]], 1)
    inside = lanes >= 0
    inside[inside.clone()] &= ~data.starts[lanes[inside]]
    torch.testing.assert_close(lanes[inside], before[inside] + 1)


def test_walk_deals_the_longest_first():
    lanes = torch.cat(list(places(packed([2, 9, 3, 4]), rows=2, length=50)), 1)
    assert (lanes >= 0).sum(1).tolist() == [9, 9]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_walk_asks_nothing_where_a_row_has_run_out(lengths):
    data = packed(lengths)
    pairs = zip(walk(data, rows=3, length=5), places(data, rows=3, length=5), strict=True)
    for batch, at in pairs:
        empty = at < 0
        assert batch.resets[empty].all()
        torch.testing.assert_close(batch.resets[~empty], data.starts[at[~empty]])
        torch.testing.assert_close(batch.targets["token"], at)
        torch.testing.assert_close(batch.tokens[..., 0], at.masked_fill(empty, 0))
        assert batch.targets["future"].isnan().all(-1).equal(empty)
        assert not batch.reals[empty].any()
        assert batch.reals[~empty][:, 0].equal(at[~empty].float())


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_draw_is_pure_and_reads_on(lengths, carry):
    data = packed(lengths)
    state = torch.get_rng_state()
    one, same = (draw(data, 5, rows=3, length=6, seed=1, carry=carry) for _ in range(2))
    assert torch.get_rng_state().equal(state)
    for a, b in zip(one[:3], same[:3], strict=True):
        assert a.equal(b)
    at = one.tokens[..., 0]
    assert at.shape == (3, 6)
    assert ((at[:, 1:] - at[:, :-1]) % len(data) == 1 % len(data)).all()
    assert one.resets.equal(data.starts[at])
    assert one.targets["token"].equal(at)


def test_draw_depends_on_seed_and_step():
    data = packed([10_000])
    places = {
        (seed, step): draw(data, step, rows=1, length=1, seed=seed).tokens.item()
        for seed in range(3)
        for step in range(3)
    }
    assert len(set(places.values())) == 9


def test_windows_begin_with_the_sequences_that_fit_into_them():
    data = packed([5, 40, 6, 7])
    at = torch.cat([draw(data, i, rows=8, length=8, seed=0).tokens[:, 0, 0] for i in range(40)])
    long = (at >= 5) & (at < 45)
    assert data.starts[at[~long]].all()
    assert len(at[long].unique()) > 20


def test_carried_rows_go_on_where_they_ended_and_cover_the_stream():
    data = packed([5, 40, 6, 13])  # 64 steps: 4 rows walk 16 each in 4 steps
    steps = [draw(data, i, rows=4, length=4, seed=3, carry=True) for i in range(8)]
    lanes = torch.cat([batch.tokens[..., 0] for batch in steps], 1)
    assert ((lanes[:, 1:] - lanes[:, :-1]) % 64 == 1).all()
    assert sorted(lanes[:, :16].flatten().tolist()) == list(range(64))


@pytest.mark.plain
def test_errors_say_what_to_fix():
    with pytest.raises(ValueError, match=r"rows >= 1 and length >= 1, got rows=0"):
        draw(packed([3]), 0, rows=0, length=4, seed=0)
    empty = Packed(torch.zeros(0, dtype=torch.bool))
    with pytest.raises(ValueError, match="holds no steps"):
        list(walk(empty, rows=1, length=4))
