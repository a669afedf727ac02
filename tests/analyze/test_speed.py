"""The measuring itself: what is wrong is not timed, turns are fair, limits are finite."""

from importlib.util import find_spec

import pytest
import torch
from native import every_level, needs

from stepscan.analyze.speed import limits, memory, models, ops, peers
from stepscan.analyze.speed.cases import Case, cases
from stepscan.analyze.speed.inputs import TABLE, Work
from stepscan.analyze.speed.rounds import in_turns
from stepscan.analyze.speed.rows import AUTO, BOTH, FORWARD, Plan
from stepscan.kernels import limits as native

SMALL = {"heads": 2, "size": 8, "rounds": 1, "patience": 60.0, "budget": 0.01}
BOUNDS = limits.Limits(1e9, 1e8, 1e9)


@pytest.fixture
def _small_limits(monkeypatch):
    monkeypatch.setattr(limits, "IN_MEMORY", 1 << 14)
    monkeypatch.setattr(limits, "PRODUCTS", ((8, 8, 8),))


def test_rounds_take_turns_and_slow_ones_run_once():
    said = []
    runs = {name: lambda name=name: said.append(name) for name in "ab"}
    times = in_turns(runs, rounds=3, budget=60.0)
    assert "".join(said) == "ab" * 4
    assert [t.count for t in times.values()] == [3, 3]
    once = in_turns({"slow": lambda: sum(range(10_000))}, rounds=3, budget=0.0)["slow"]
    assert (once.count, once.median) == (1, once.first)


@pytest.mark.usefixtures("_small_limits")
def test_limits_are_rates_of_torch_where_there_are_no_kernels(monkeypatch):
    monkeypatch.setenv("STEPSCAN_KERNELS", "off")
    found, rates = limits.measure()
    assert all(0 < rate < float("inf") for rate in (*found, *rates.values()))
    assert found.multiply_adds == pytest.approx(1e9 * max(_of(rates, "float32")) / 2)


@needs("limit_multiply_adds")
@pytest.mark.usefixtures("_small_limits")
def test_limits_know_the_machine():
    found, rates = limits.measure()
    assert found.bytes_read == pytest.approx(1e9 * max(_of(rates, "GB/s")))
    assert found.exponentials >= 1e9 * rates["torch.exp, G/s"]


def _of(rates, word):
    return [rate for name, rate in rates.items() if word in name]


@needs("limit_multiply_adds")
@every_level
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_the_loops_do_what_they_say(level, threads):
    # s = s / 2 + 1 / 2 goes to 1 in every lane of every chain
    sums = native.limit_multiply_adds(torch.full((1,), 0.5), 100)
    assert sums.shape == (threads,)
    assert sums[0].item() in (48, 96, 256)
    x = -torch.rand(4096)
    want = 3 * torch.exp2(x).sum()
    torch.testing.assert_close(native.limit_powers(x, 3), want.expand(threads))
    for streams in (1, 2, 4, 8):
        # whole vectors of every stream of every thread, and nothing beyond the last number
        for count in (1, 100, 1024, 5000):
            got = native.limit_reads(torch.ones(count), streams).sum()
            assert count - threads * 8 * 16 < got <= count


def test_the_limit_that_binds_takes_longest():
    assert BOUNDS.binding(Work(1e9, 1e9), 1e9) == ("exp", 10.0)
    assert BOUNDS.binding(Work(5e9, 1e8), 1e9) == ("multiply-add", 5.0)
    assert BOUNDS.binding(Work(), 2e9) == ("read", 2.0)


@pytest.mark.parametrize("what", [FORWARD, BOTH])
@pytest.mark.parametrize("op", TABLE)
def test_every_form_and_peer_of_every_op_is_timed(op, what):
    if what == BOTH and "decay" in op:  # the same code as without
        pytest.skip("forward is enough for this one")
    plan = Plan((130,), ops=op, backward=what == BOTH, **SMALL)
    rows = [row for row in ops.measure(plan, BOUNDS) if row["pass"] == what]
    (case,) = cases(1, heads=2, size=8, ops=op)
    known = {AUTO, *case.forms, *(peer.name for peer in peers.peers(op))}
    assert {row["form"] for row in rows} == known
    untimed = [row["note"] for row in rows if not row["ms"]]
    assert all("wants a multiple of" in note for note in untimed), untimed
    assert not any(map(ops.is_wrong, rows))
    assert rows[0]["x auto"] == 1


def test_a_form_that_differs_is_not_timed(monkeypatch):
    (case,) = cases(4, heads=1, size=2, ops="linear_scan")

    def broken(a, b, *, form):
        y, state = case.verb(a, b)
        return (y + 0.1 if form == "blocked" else y), state

    monkeypatch.setattr(ops, "case_of", lambda plan, op, T: _with(plan, T, broken))
    rows = list(ops.measure(Plan((64,), ops="linear_scan", **SMALL), BOUNDS))
    wrong = [row for row in rows if ops.is_wrong(row)]
    assert [(row["form"], row["note"], row["ms"]) for row in wrong] == [
        ("blocked", ops.WRONG, None)
    ]


def _with(plan, T, verb):
    (case,) = cases(T, heads=plan.heads, size=plan.size, ops="linear_scan")
    return Case(case.op, verb, case.inputs, case.forms)


def test_what_would_take_too_long_is_left_out():
    plan = Plan((128, 1 << 12), ops="cell_scan lstm", **SMALL | {"patience": 0.0})
    rows = list(ops.measure(plan, BOUNDS))
    assert all(row["note"].startswith(ops.LEFT_OUT) for row in rows)
    assert not any(map(ops.is_wrong, rows))


@pytest.mark.skipif(find_spec("transformers") is None, reason="pip install 'stepscan[bench]'")
def test_whole_layers_and_models_equal_those_of_transformers(monkeypatch):
    for name, size in {
        "WIDTH": 64,
        "DEPTH": 2,
        "VOCABULARY": 40,
        "PROMPT": 128,
        "WINDOW": 64,
    }.items():
        monkeypatch.setattr(models, name, size)
    rows = list(models.measure(Plan((128,), backward=True, **SMALL)))
    assert all(row["ms"] for row in rows), [row["note"] for row in rows]
    assert {row["op"] for row in rows if "transformers" in row["form"]} == {
        "layer mamba",
        "layer mamba2",
        "model mamba",
    }


@pytest.mark.skipif(not memory.RESET.exists(), reason="needs Linux")
@pytest.mark.slow
def test_memory_is_that_of_the_pass():
    plan = Plan((1 << 14,), ops="linear_scan", with_peers=False, **SMALL | {"heads": 4, "size": 32})
    (row,) = memory.measure(plan)
    h = 4 * 128 * (1 << 14) / 2**20  # what any form must make
    assert h * 0.9 <= row["peak MB"] <= 12 * h
