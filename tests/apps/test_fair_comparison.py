"""Fair comparison: equal compute, hybrids, paired seeds, self-pretraining; what is said of it."""

import dataclasses
import itertools
import json
import math

import pytest
import torch

from stepscan.analyze.scaling import PowerLaw
from stepscan.apps import scaling
from stepscan.apps.bench import (
    Protocol,
    Sweep,
    bench,
    compute,
    hybrid,
    matrix,
    orderings,
    pairs,
    study,
)
from stepscan.apps.bench.training import Descent, train
from stepscan.apps.compare import section
from stepscan.apps.progress import Voice
from stepscan.cli import main
from stepscan.data.batches import draw
from stepscan.models.pattern import parse
from stepscan.tasks import Parity

TINY = Protocol(
    size=6000, steps=4, seconds=60, rates=(1e-2,), seeds=2, factors=(1,), examples=8, looks=2
)
QUIET = Voice(quiet=True)


def cell(mixer, task, scores, *, seeds=None, ended="budget", seconds=10.0):
    """A cell whose seeds reached these scores; None is a seed that diverged."""
    runs = [
        {
            "rate": 1e-2,
            "seed": seed,
            "width": 16,
            "parameters": 1000,
            "state_bytes": 100,
            "streams": True,
            "steps": 10,
            "tokens": 100,
            "seconds": seconds,
            "curve": [],
            "valid": score or 0.0,
            "diverged": score is None,
            "ended": "diverged" if score is None else ended,
            "scores": {} if score is None else {"1": score},
        }
        for seed, score in zip(seeds or range(len(scores)), scores, strict=True)
    ]
    (found,) = matrix.cells({(mixer, task): runs})
    return found


# Seeds are shared -------------------------------------------------------------------------------


DRAWN = []


class Noted(Parity):
    """Keeps what was drawn."""

    def draw(self, n, rng):
        """Draw, and keep."""
        batch = super().draw(n, rng)
        DRAWN.append(batch.input)
        return batch


def test_mixers_with_the_same_seed_read_the_same_examples():
    read = {}
    for mixer, seed in (("gla", 0), ("lstm", 0), ("lstm", 1)):
        DRAWN.clear()
        train(mixer, Noted(), TINY, rate=1e-2, seed=seed)
        read[mixer, seed] = [x for x in DRAWN if len(x) == TINY.batch]
    one, other, apart = read.values()
    assert len(one) == len(other) == TINY.steps
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], apart[0])


def quickly(domain, monkeypatch):
    """Little steps, and little looking."""
    domain.recipe = dataclasses.replace(domain.recipe, rows=2, length=16)
    monkeypatch.setattr("stepscan.apps.entrants.LOOK", 2000)
    monkeypatch.setattr("stepscan.apps.compare.TEST", 2000)
    monkeypatch.setattr("stepscan.apps.measure.decode_per_second", lambda model: None)


def test_candidates_of_compare_read_the_same_examples(small, monkeypatch):
    domain, _ = small("text")
    read = []

    def noted(packed, at, **options):
        batch = draw(packed, at, **options)
        read.append((options["seed"], at, batch.tokens))
        return batch

    monkeypatch.setattr("stepscan.train.loop.draw", noted)
    quickly(domain, monkeypatch)
    section(domain, ["min_gru", "gla"], minutes=0.004, seeds=1, width=16)
    steps = {}
    for seed, at, tokens in read:
        steps.setdefault((seed, at), []).append(tokens)
    twice = [found for found in steps.values() if len(found) == 2]
    assert len(twice) > 1
    assert all(torch.equal(*found) for found in twice)
    assert not torch.equal(twice[0][0], twice[1][0])


# Pairs ------------------------------------------------------------------------------------------


def test_differences_are_taken_seed_by_seed():
    """Seeds scatter more than the mixers differ: paired, the difference is sure."""
    lucky = (0.6, 0.7, 0.8, 0.9)
    cells = [cell("gru", "parity", [x + 0.02 for x in lucky]), cell("gla", "parity", lucky)]
    gap = pairs.on_task(cells, "gru", "gla", "parity")
    assert gap.mean == pytest.approx(0.04)  # of scores above chance
    assert gap.excludes_zero
    mixed = [cells[0], cell("gla", "parity", lucky[::-1])]
    assert not pairs.on_task(mixed, "gru", "gla", "parity").excludes_zero


def test_a_seed_that_diverged_does_not_shift_the_pairs():
    cells = [cell("gru", "parity", (0.8, 0.9, 1.0)), cell("gla", "parity", (0.7, None, 0.9))]
    assert cells[1]["seeds"] == [0, 2]
    assert pairs.on_task(cells, "gru", "gla", "parity").mean == pytest.approx(0.2)
    assert pairs.on_task(cells, "gru", "gla", "parity").count == 2
    assert pairs.on_task(cells, "gru", "lstm", "parity") is None


def test_who_is_ahead_over_tasks_is_said_with_its_noise():
    tasks = ("parity", "recall", "delay")
    level = [cell("gla", task, (0.6, 0.6)) for task in tasks]
    ahead = [cell("gru", t, (0.8 - 0.1 * (t == "parity"),) * 2) for t in tasks]
    (said,) = pairs.findings(level + ahead)
    assert "gru is" in said
    assert said.endswith(": beyond the noise.")
    torn = [cell("gru", task, (s, s)) for task, s in zip(tasks, (1.0, 0.5, 0.5), strict=True)]
    (said,) = pairs.findings(level + torn)
    assert said.endswith("not beyond the noise.")
    assert pairs.findings(level) == []


def test_abilities_that_order_mixers_differently_are_named():
    names, scores = ("gla", "gru", "lstm", "mamba"), (0.6, 0.7, 0.8, 0.9)
    cells = [cell(n, "parity", (s,)) for n, s in zip(names, scores, strict=True)]
    cells += [cell(n, "recall", (s,)) for n, s in zip(names, scores, strict=True)]
    cells += [cell(n, "delay", (1 - s,)) for n, s in zip(names, scores, strict=True)]
    said = pairs.findings(cells)[-1]
    assert "and signals order the mixers least alike: rank correlation -1.00 over 4." in said
    assert "rank correlation +1.00" in pairs.findings(cells[:8])[-1]


def test_published_orderings_carry_the_paired_differences():
    claim = orderings.Claim("a beats b", "nobody", ("parity",), ("gru",), ("gla",))
    cells = [cell("gru", "parity", (0.8, 0.9)), cell("gla", "parity", (0.7, 0.8))]
    (row,) = orderings.check(cells, [claim])
    (lead,) = row["leads"]
    assert lead["mean"] == pytest.approx(0.2)
    assert lead["half"] == pytest.approx(0.0, abs=1e-9)
    assert lead["seeds"] == 2


def test_two_results_agree_as_far_as_their_orders():
    names = ("gla", "gru", "lstm", "mamba")
    ours = {name: float(i) for i, name in enumerate(names)}
    assert pairs.agreement(ours, {n: x**3 for n, x in ours.items()}) == pytest.approx(1.0)
    assert pairs.agreement(ours, {n: -x for n, x in ours.items()}) == pytest.approx(-1.0)
    assert pairs.agreement(ours, {"gla": 1.0, "gru": 2.0}) is None


def test_a_bench_and_a_compare_can_be_held_against_each_other():
    cells = [cell(m, "parity", (s,)) for m, s in (("gla", 0.6), ("gru", 0.9))]
    metric = {"name": "bits per byte", "better": "lower"}
    rows = [
        {"name": n, "baseline": b, "scores": {"bits per byte": v}}
        for n, b, v in (("gla", False, [2.0, None]), ("gru", False, [1.5, 1.6]), ("x", True, [1.0]))
    ]
    compared = {"sections": [{"metric": "bits per byte", "metrics": [metric], "candidates": rows}]}
    assert pairs.order(compared) == {"gla": 0.0, "gru": 1.0}
    benched = pairs.order({"kind": "bench", "cells": cells})
    assert benched == pytest.approx({"gla": 0.2, "gru": 0.8})


# Equal compute ----------------------------------------------------------------------------------


class Clock:
    """CPU time that passes by a known amount in each step, and drifts for all alike."""

    def __init__(self, monkeypatch, paces):
        self.now, self.paces, self.calls = 0.0, paces, 0
        self.order = []
        made = itertools.cycle(paces)
        real = Descent.__init__

        def init(descent, *args, **kwargs):
            real(descent, *args, **kwargs)
            descent.name = next(made)

        monkeypatch.setattr(Descent, "__init__", init)

    def step(self, descent, part):
        self.calls += 1
        first = descent.tokens == 0
        descent.tokens = 640
        if not self.order or self.order[-1] != descent.name:
            self.order.append(descent.name)
        self.now += self.paces[descent.name] * (3 if first else 1)
        return True

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Two mixers, one four times as fast."""
    found = Clock(monkeypatch, {"gla": 0.02, "lstm": 0.005})
    monkeypatch.setattr(Descent, "step", lambda *args: found.step(*args))  # noqa: PLW0108
    return found


def test_budgets_follow_from_the_pace_of_warm_steps(clock):
    protocol = dataclasses.replace(TINY, budget="compute", seconds=10.0)
    found = compute.measure(("gla", "lstm"), Parity(), protocol, clock=clock)
    assert found["gla"]["steps"] == pytest.approx(500, abs=1)
    assert found["lstm"]["steps"] == pytest.approx(2000, abs=1)
    assert found["gla"]["tokens_per_second"] == pytest.approx(32_000)
    assert found["gla"]["tokens"] == 640 * found["gla"]["steps"]
    assert found["lstm"]["spread"] < 1e-6


def test_mixers_are_measured_in_turns(clock):
    protocol = dataclasses.replace(TINY, budget="compute", seconds=10.0)
    compute.measure(("gla", "lstm"), Parity(), protocol, clock=clock, rounds=4)
    assert clock.order == [
        "lstm",
        "gla",
        "lstm",
        "gla",
        "lstm",
        "gla",
    ]  # the next begins as it ended


def test_self_pretraining_is_paid_from_the_same_purse(clock, monkeypatch):
    monkeypatch.setattr(compute, "self_pretrain", lambda *_, steps, **__: {"seconds": 0.01 * steps})
    protocol = dataclasses.replace(TINY, budget="compute", seconds=10.0, self_pretrain=400)
    found = compute.measure(("gla", "lstm"), Parity(), protocol, clock=clock)
    assert found["gla"]["pretraining_seconds"] == pytest.approx(4.0)
    assert found["gla"]["steps"] == pytest.approx(300, abs=1)
    with pytest.raises(ValueError, match="want more seconds"):
        compute.measure(("gla",), Parity(), dataclasses.replace(protocol, seconds=1.0))


def test_a_cell_trains_as_many_steps_as_its_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "TURN", 0.02)
    protocol = dataclasses.replace(TINY, budget="compute", seconds=0.3)
    found = bench(
        ("gla", "lstm"), ("parity",), protocol=protocol, out=tmp_path, workers=0, voice=QUIET
    )
    budgets = json.loads((tmp_path / compute.FILE).read_text())
    assert found["budgets"] == budgets
    for got in found["cells"]:
        assert got["steps"] == [budgets["parity"][got["mixer"]]["steps"]] * 2
    assert any(line.startswith("Equal compute: ") for line in found["findings"])


def test_measured_budgets_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "TURN", 0.02)
    protocol = dataclasses.replace(TINY, budget="compute", seconds=0.3)
    one = compute.budgets(tmp_path, ("gla",), ("parity",), protocol, threads=1)
    monkeypatch.setattr(compute, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert compute.budgets(tmp_path, ("gla",), ("parity",), protocol, threads=1) == one
    changed = compute.of_cell(protocol, tmp_path, "gla", "parity")
    assert changed.steps == one["parity"]["gla"]["steps"]
    assert changed.seconds == math.inf
    assert compute.of_cell(TINY, tmp_path, "gla", "parity") is TINY


def test_speeds_are_measured_with_the_threads_of_the_trainings(tmp_path, monkeypatch):
    seen = []
    note = lambda *_, **__: {"gla": seen.append(torch.get_num_threads())}  # noqa: E731
    monkeypatch.setattr(compute, "measure", note)
    compute.budgets(tmp_path, ("gla",), ("parity",), TINY, threads=2)
    assert seen == [2]
    assert torch.get_num_threads() == 1


def test_how_equal_it_was_is_said():
    protocol = {"budget": "compute"}
    cells = [
        cell("gla", "parity", (0.6,), seconds=10.0),
        cell("gru", "parity", (0.6,), seconds=10.2),
        cell("lstm", "parity", (0.6,), seconds=13.0),
        cell("mamba", "parity", (0.6,), seconds=1.0, ended="learned"),
    ]
    (said,) = compute.findings(cells, protocol)
    assert "2 of 3 whole trainings ended within 3% of 10.2 seconds" in said
    assert compute.findings(cells, {"budget": "steps"}) == []
    assert compute.findings(cells[-1:], protocol) == []


# Scaling ----------------------------------------------------------------------------------------


def curve(law, noise=0.001):
    """Points of a planted law, as `compare` measures them."""
    rng = torch.Generator().manual_seed(0)
    return [
        [c, law(c) * (1 + noise * torch.randn(1, generator=rng).item())]
        for c in (2.0**k for k in range(8))
    ]


def test_laws_and_their_crossing_are_said():
    points = {"gru": curve(PowerLaw(2.5, 2.0, 0.9)), "attention": curve(PowerLaw(1.5, 4.0, 0.4))}
    found = scaling.laws(points, "bits/byte")
    assert found["laws"]["gru"]["exponent"] == pytest.approx(0.9, rel=0.05)
    assert found["laws"]["attention"]["exponent"] == pytest.approx(0.4, rel=0.05)
    (place,) = found["crossings"]
    assert (place["first"], place["second"]) == ("gru", "attention")
    assert found["findings"][-1].startswith("gru leads until about ")
    turned = scaling.laws(dict(reversed(points.items())), "bits/byte")
    assert turned["crossings"][0]["first"] == "gru"
    json.dumps(found, allow_nan=False)


def test_a_candidate_without_a_law_is_said():
    found = scaling.laws({"gru": curve(PowerLaw(2.5, 2.0, 0.9)), "gla": [[1.0, 2.0]]}, "bits/byte")
    assert "gla: scaling: want a loss for each of four" in found["findings"][0]
    assert list(found["laws"]) == ["gru"]


def test_shorter_times_are_trained_too(small, monkeypatch):
    domain, _ = small("text")
    quickly(domain, monkeypatch)
    whole, _ = section(domain, ["min_gru"], minutes=0.01, seeds=1, width=16)
    found = scaling.scaling(domain, whole, halvings=3, most=2000)
    seconds = [seconds for seconds, _ in found["points"]["min_gru"]]
    assert len(seconds) == 4
    assert all(took >= asked for took, asked in zip(seconds, (0.075, 0.15, 0.3, 0.6), strict=True))
    assert found["findings"]


def test_too_few_shorter_times_are_refused():
    with pytest.raises(ValueError, match="scaling >= 3"):
        scaling.check(2)
    scaling.check(0)


# Hybrids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "layers", "expected"),
    [
        ("1:0", 8, "gla*8"),
        ("6:1", 7, "gla*6 attention"),
        ("3:1", 8, "(gla*3 attention)*2"),
        ("1:1", 8, "(gla attention)*4"),
        ("0:1", 4, "attention*4"),
        ("2:1", 4, "gla*3 attention"),
    ],
)
def test_patterns_have_the_layers_of_their_ratio(ratio, layers, expected):
    (text,) = Sweep(linear=("gla",), ratios=(ratio,), layers=layers).patterns()
    assert text == expected
    assert len(parse(text)) == layers


@pytest.mark.parametrize("layers", [6, 7, 8, 12])
def test_every_ratio_has_its_own_number_of_full_layers(layers):
    found = Sweep(linear=("gla", "gated_delta_net"), layers=layers).patterns()
    assert len(found) == 2 * 4 + 1  # all full is the same for both
    for text, about in found.items():
        names = [config.name for config in parse(text)]
        assert len(names) == layers
        assert names.count("attention") == about["full"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 4}, "6:1 and 3:1 are both 3:1 with 4 layers"),
        ({"ratios": ("3",)}, "want ratios as in 3:1"),
        ({"ratios": ("0:0",)}, "want ratios as in 3:1"),
        ({"ratios": ("1:1",), "layers": 1}, "too few"),
        ({"linear": ()}, "at least one mixer"),
        ({"linear": ("gla*2",)}, "want a mixer"),
        ({"linear": ("glaa",)}, "Did you mean 'gla'"),
    ],
)
def test_sweeps_that_cannot_be_run_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Sweep(**({"linear": ("gla",)} | options))


SWEEP = Sweep(linear=("gla", "retnet", "mamba"), ratios=("1:0", "3:1", "0:1"), layers=4)


def grid(alone, mixed, full=1.0):
    """Cells on parity, by the score above chance of each linear mixer alone and at 3:1."""
    score = lambda x: 0.5 + x / 2  # noqa: E731
    names = SWEEP.linear
    cells = [cell(f"{n}*4", "parity", (score(x),) * 2) for n, x in zip(names, alone, strict=True)]
    cells += [
        cell(f"{n}*3 attention", "parity", (score(x - 0.01), score(x + 0.01)))
        for n, x in zip(names, mixed, strict=True)
    ]
    return [*cells, cell("attention*4", "parity", (score(full),))]


def test_the_sweep_is_summed_up_by_cell():
    found = hybrid.summary(grid((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), SWEEP.patterns())
    assert len(found["grid"]) == 7
    (row,) = [r for r in found["grid"] if (r["linear"], r["ratio"]) == ("gla", "3:1")]
    assert row["mean"] == pytest.approx(0.5)
    assert row["spread"] == pytest.approx(0.01 * math.sqrt(2))


@pytest.mark.parametrize(
    ("mixed", "correlation", "best"),
    [
        ((0.5, 0.6, 0.7), 1.0, "mamba"),
        ((0.7, 0.6, 0.5), -1.0, "gla"),
        ((0.6, 0.7, 0.5), -0.5, "retnet"),
    ],
)
def test_the_best_alone_need_not_be_the_best_partner(mixed, correlation, best):
    found = hybrid.summary(grid((0.1, 0.2, 0.3), mixed), SWEEP.patterns())
    (row,) = found["agreements"]
    assert row["rank_correlation"] == pytest.approx(correlation)
    assert (row["best_alone"], row["best_hybrid"]) == ("mamba", best)
    said = hybrid.findings(found)
    assert f"{correlation:+.2f}" in said[-1]
    assert best in said[-1]


def test_rising_and_falling_are_told_apart():
    rises = hybrid.findings(hybrid.summary(grid((0.1,) * 3, (0.5,) * 3), SWEEP.patterns()))
    assert any(line.startswith("gla on parity rises with full attention") for line in rises)
    falls = hybrid.findings(hybrid.summary(grid((0.9,) * 3, (0.5,) * 3), SWEEP.patterns()))
    assert any("gla on parity does not rise steadily" in line for line in falls)


def test_a_sweep_from_the_command_line(tmp_path, capsys, monkeypatch):
    def fake(mixer, task, protocol, *, rate, seed):
        found = cell(mixer, task.name, (0.75,))
        count = sum(config.name == "attention" for config in parse(mixer))
        keys = ("width", "parameters", "state_bytes", "streams")
        return {
            **{k: found[k] for k in keys},
            **{"mixer": mixer, "rate": rate, "seed": seed, "steps": 1, "tokens": 1, "seconds": 1.0},
            **{"curve": [], "valid": 0.5, "diverged": False, "ended": "budget"},
            "scores": {"1": 0.5 + count / 10},
        }

    monkeypatch.setattr(study, "train", fake)
    sizes = ["--size", "9000", "--layers", "4", "--factors", "1", "--rates", "1e-2"]
    sweep = ["--sweep-hybrid", "gla,retnet", "--ratios", "1:0,3:1,1:1,0:1"]
    where = ["--tasks", "parity", "--out", str(tmp_path / "run"), "--workers", "0", "--json"]
    assert main(["bench", *sweep, *sizes, *where]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["cells"]) == 7
    assert found["protocol"]["layers"] == 4
    assert {row["ratio"] for row in found["sweep"]["grid"]} == {"1:0", "3:1", "1:1", "0:1"}
    assert any("rises with full attention" in line for line in found["findings"])
    assert "Hybrids" in (tmp_path / "run" / "report.html").read_text()


# Self-pretraining -------------------------------------------------------------------------------


def test_self_pretraining_changes_the_training_and_is_counted():
    task = Parity()
    plain = train("gla", task, TINY, rate=1e-2, seed=0)
    pretrained = dataclasses.replace(TINY, self_pretrain=3)
    found = train("gla", task, pretrained, rate=1e-2, seed=0)
    assert plain["pretraining"] is None
    assert found["pretraining"]["steps"] == 3
    assert found["steps"] == plain["steps"] == TINY.steps
    assert found["valid"] != plain["valid"] or found["scores"] != plain["scores"]
    (got,) = matrix.cells({("gla", "parity"): [found]})
    assert got["seconds"] == [found["seconds"]]
    assert got["total_seconds"] == [found["seconds"] + found["pretraining"]["seconds"]]
    assert got["total_tokens"] == [found["tokens"] * 7 / 4]


def test_trainings_of_earlier_versions_are_found_again():
    """Settings that came later are part of a training's name only where they are not as before."""
    swept = {"rates", "seeds"}  # which trainings there are is not what one of them is
    assert set(TINY.key()) == set(TINY.to_dict()) - {"budget", "self_pretrain"} - swept
    assert dataclasses.replace(TINY, self_pretrain=3).key()["self_pretrain"] == 3
    assert dataclasses.replace(TINY, seeds=9, rates=(0.5,)).key() == TINY.key()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--self-pretrain", "-1"], "self_pretrain >= 0"),
        (["--budget", "money"], "budget"),
        (["--sweep-hybrid", "gla", "--layers", "4"], "take more layers or fewer ratios"),
        (["--sweep-hybrid", "gla", "--ratios", "3"], "want ratios as in 3:1"),
    ],
)
def test_nonsense_is_refused_in_one_line(options, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
