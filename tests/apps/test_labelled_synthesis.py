"""Row 139: more of a rare class, of a generator that has not learned it by heart."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from stepscan.analyze.synthetic import Nearest, distances, nearest
from stepscan.apps.candidate import Candidate
from stepscan.apps.kinds import domain_of
from stepscan.apps.labelled import synthesis
from stepscan.apps.labelled.synthesis import more_of, padded
from stepscan.apps.model import Model
from stepscan.cli import main
from stepscan.data.base import DataError, DataOptions
from stepscan.data.infer import labelled_columns
from stepscan.data.named import Table
from stepscan.data.open import open_dataset
from stepscan.data.sequences import from_table
from stepscan.train.config import TrainConfig

VISITS = 16


def cohort(patients=300, rare=0.12, seed=0):
    """Courses of a disease: two scores move along a sigmoid, those of a few patients fast."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        fast = patient < round(rare * patients)
        onset, width = rng.uniform(5, 11), rng.normal(1.2, 0.3) if fast else rng.normal(2.4, 0.5)
        rise = 1 / (1 + np.exp(-(np.arange(VISITS) - onset) / max(width, 0.4)))
        floor, height = rng.normal(10, 2, 2), rng.normal(30, 5, 2) * (1, -0.5)
        scores = floor + height * rise[:, None] + rng.normal(0, 2, (VISITS, 2))
        label = "fast" if fast else "slow"
        rows += [(f"p{patient:04}", t, *scores[t], label) for t in range(VISITS)]
    return pd.DataFrame(rows, columns=["patient", "visit", "memory", "volume", "course"])


HOW = DataOptions(kind="labelled", id="patient", time="visit", label="course")


# The nearest-neighbour test ----------------------------------------------------------------------


def some(count, seed):
    """Walks: what is drawn anew is no copy."""
    return torch.randn(count, 12, 2, generator=torch.Generator().manual_seed(seed)).cumsum(1)


def test_distances_by_hand():
    a = torch.tensor([[[1.0], [2.0], [torch.nan]]])
    b = torch.tensor([[[1.0], [4.0], [9.0]], [[torch.nan], [torch.nan], [3.0]]])
    assert distances(a, b).tolist() == [[2**0.5, torch.inf]]


def test_p_is_that_of_the_mann_whitney_test():
    train, held = some(40, 0), some(25, 1)
    for made in (some(60, 2), 0.8 * some(60, 2), train[:30] + 0.5 * some(30, 3)):
        found = nearest(made, train, held)
        near, real = (distances(x, train).amin(1).numpy() for x in (made, held))
        how = {"alternative": "less", "method": "asymptotic"}
        assert found.p == pytest.approx(stats.mannwhitneyu(near, real, **how).pvalue, abs=1e-6)
        assert found.made == np.sort(near)[(len(near) - 1) // 2]


def test_a_generator_that_copies_is_caught_and_an_honest_one_is_not():
    """Copies as they are, all disturbed a little, one of fifty; and new ones a hundred times."""
    found = [nearest(some(50, s), some(30, s + 500), some(20, s + 1000)) for s in range(100)]
    assert sum(not one.sound for one in found) <= 1
    assert sum(one.p < 0.1 for one in found) == pytest.approx(10, abs=8), "p is a chance"
    for seed in range(10):
        train, held, new = some(30, seed), some(20, 100 + seed), some(50, 200 + seed)
        for noise in (0.0, 0.05):
            copies = train[torch.arange(50) % 30] + noise * some(50, 300 + seed)
            assert not nearest(copies, train, held).sound
        one = new.clone()
        one[7] = train[3] + 0.01
        found = nearest(one, train, held)
        assert (found.copies, found.sound) == (1, False)


# More of a class ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def more():
    return more_of(cohort(), steps=150, options=HOW)


def test_what_was_real_stays_where_it_was(more):
    """The parts are those that `fit` draws, and what is made is in the training part alone."""
    frame, before = more.frame, cohort()
    made = frame[frame["patient"].str.startswith("synthetic-")]
    real = frame[~frame["patient"].str.startswith("synthetic-")]
    assert (more.label, set(made["split"]), set(made["course"])) == ("fast", {"train"}, {"fast"})
    pd.testing.assert_frame_equal(
        real[list(before.columns)].reset_index(drop=True), before, check_dtype=False
    )
    counts = frame[frame["split"] == "train"].groupby("course")["patient"].nunique()
    assert counts["fast"] == counts["slow"], "as frequent as the most frequent"
    assert isinstance(more.count, int)
    assert len(made) == VISITS * made["patient"].nunique()
    old, new = open_dataset(before, HOW), open_dataset(frame, HOW)
    for part in ("valid", "test"):
        a, b = (
            x.parts[part].targets_at(torch.arange(len(x.parts[part])))["label"] for x in (old, new)
        )
        assert torch.equal(a, b)


def test_what_is_made_is_like_the_class(more):
    made = more.frame[more.frame["patient"].str.startswith("synthetic-")]
    rise = made.groupby("visit")["memory"].mean()
    assert rise.iloc[-2:].mean() - rise.iloc[:2].mean() > 15, "it rises by about 30"
    assert 8 < rise.iloc[:2].mean() < 20
    again = more_of(cohort(), steps=150, options=HOW)
    assert again.frame.equals(more.frame)


def test_only_the_training_part_of_the_class_is_learned_from(monkeypatch):
    """Whatever the held-out patients and the others have, the generator reads the same."""
    read = []

    def keep(x, *_):
        read.append(x)
        raise KeyboardInterrupt

    monkeypatch.setattr(synthesis, "train_generator", keep)
    frame = cohort()
    table = Table(frame, "cohort")
    found = from_table(table, labelled_columns(table, HOW)[0])
    with pytest.raises(KeyboardInterrupt):
        more_of(frame, "fast", options=HOW)
    whole = padded(found.take(np.arange(36)), ["memory", "volume"])
    schema = open_dataset(frame, HOW).schema
    scaled = ((whole - torch.tensor(schema.center)) / torch.tensor(schema.scale)).float()
    same = (distances(read[0], scaled) < 1e-5).sum(1)
    assert same.tolist() == [1] * len(read[0])
    assert len(read[0]) == 36 - 2 * round(36 * 0.2) + round(36 * 0.2) - round(36 * 0.15)


def test_a_generator_that_copies_is_refused(monkeypatch, tmp_path, capsys):
    def copy(generator, real, lengths, count, seed):
        return real[torch.arange(count) % len(real)] + 1e-3

    monkeypatch.setattr(synthesis, "sample", copy)
    cohort().to_csv(tmp_path / "cohort.csv", index=False)
    out = tmp_path / "more.csv"
    line = f"synthesize {tmp_path}/cohort.csv --of fast --out {out} --steps 3 --id patient"
    assert main([*line.split(), "--time", "visit", "--label", "course"]) == 2
    said = capsys.readouterr().err
    assert "too near to its training sequences" in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_from_the_command_line(tmp_path, capsys):
    cohort(120, 0.3).to_csv(tmp_path / "cohort.csv", index=False)
    out = tmp_path / "more.csv"
    line = f"synthesize {tmp_path}/cohort.csv --of fast --count 9 --out {out} --steps 60"
    told = ["--id", "patient", "--time", "visit", "--label", "course"]
    assert main([*line.split(), *told]) == 0
    assert '9 sequences of "fast"' in capsys.readouterr().out
    assert pd.read_csv(out)["patient"].nunique() == 129
    for word, wrong in (("quick", 'no class "quick" in training; classes: fast, slow'),):
        assert main([*line.replace("--of fast", f"--of {word}").split(), *told]) == 2
        assert wrong in capsys.readouterr().err
    with pytest.raises(DataError, match=r'class "fast" has \d+ sequences in training'):
        more_of(cohort(60, 0.1), options=HOW)
    with pytest.raises(DataError, match="want sequences of numbers with classes"):
        more_of(cohort(60).assign(word="a b".split() * 480), options=HOW)


def test_shorter_sequences_end_where_real_ones_end():
    frame = cohort(100, 0.4)
    frame = frame[frame["visit"] < 9 + frame["patient"].str[-1].astype(int) % 4]
    made = more_of(frame, count=40, steps=60, options=HOW).frame
    lengths = made[made["patient"].str.startswith("synthetic-")].groupby("patient").size()
    assert set(lengths) <= {9, 10, 11, 12}
    assert len(set(lengths)) > 1
    assert isinstance(nearest(some(3, 0), some(9, 1), some(4, 2)), Nearest)


# Whether it helps --------------------------------------------------------------------------------


def trained(frame, how, seed):
    """A GRU, 250 steps."""
    domain = domain_of(open_dataset(frame, how))
    told = {"steps": 250, "rows": 16, "length": 64, "learning_rate": 3e-3, "evaluations": 5}
    with torch.random.fork_rng():
        candidate = Candidate(domain, domain.config("gru", 32), TrainConfig(seed=seed, **told))
        candidate.trainer.run()
        return Model(candidate.finish(), domain.dataset.schema)


def balanced(model, frame):
    """Balanced accuracy on other patients, half of them of the rare class; and its recall."""
    patients = frame.groupby("patient")
    true = patients["course"].first().to_numpy()
    chance = model.probabilities([g[["memory", "volume"]].to_numpy() for _, g in patients])
    said = np.array(model.schema.classes)[chance.argmax(1)]
    recall = {c: float((said[true == c] == c).mean()) for c in ("fast", "slow")}
    return (recall["fast"] + recall["slow"]) / 2, recall["fast"]


@pytest.mark.slow
def test_generated_patients_help_to_find_the_rare_class():
    """300 patients, 36 of them fast, 24 of these in training; 147 made, or refused; three seeds.

    Recorded: balanced accuracy 0.655, 0.707, 0.500 without; 0.696, 0.787, refused with generated
    patients; 0.764, 0.810, 0.712 with weights of classes; 0.791, 0.790, 0.776 with copies.
    """
    others, found = cohort(1000, 0.5, seed=99), []
    for seed in range(3):
        frame = cohort(seed=seed)
        try:
            more = more_of(frame, "fast", options=HOW, seed=seed)
        except ValueError:  # refused
            continue
        found.append([balanced(trained(x, HOW, seed), others)[0] for x in (frame, more.frame)])
    assert len(found) >= 2
    plain, helped = np.mean(found, 0)
    assert helped > plain


@pytest.mark.slow
@pytest.mark.xfail(strict=False, reason="0.696, 0.787 against 0.764, 0.810 with balanced weights")
def test_generated_patients_help_more_than_weights():
    others, found = cohort(1000, 0.5, seed=99), []
    for seed in range(2):
        frame = cohort(seed=seed)
        more = more_of(frame, "fast", options=HOW, seed=seed).frame
        ways = ((more, HOW), (frame, replace(HOW, class_weights="balanced")))
        found.append([balanced(trained(x, how, seed), others)[0] for x, how in ways])
    ours, weighted = np.mean(found, 0)
    assert ours > weighted
