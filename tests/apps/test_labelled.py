"""Models of labelled sequences: metrics against scikit-learn, calibration, baselines, streams."""

import json
import math

import numpy as np
import pytest
import torch
from made_up_sequences import letters_frame, levels, sensors_frame, waves
from torch.nn import functional as F

import stepscan as ss
from stepscan.apps.candidate import Candidate
from stepscan.apps.fit import fit
from stepscan.apps.kinds import domain_of
from stepscan.apps.labelled import metrics
from stepscan.apps.labelled.baselines import linear_classes, logistic, ridge, statistics
from stepscan.apps.labelled.calibration import cool, temperature
from stepscan.apps.labelled.outputs import all_outputs, batches, last_outputs
from stepscan.cli import main
from stepscan.data.base import DataError, DataOptions
from stepscan.data.batches import gather
from stepscan.data.labelled_dataset import labelled_dataset
from stepscan.data.open import open_dataset
from stepscan.data.sequences import from_arrays
from stepscan.models import Classify, Inputs, SequenceModel
from stepscan.train.config import TrainConfig
from stepscan.train.objectives import loss

TINY = {"steps": 4, "width": 16, "rows": 4, "quiet": True, "layers": "min_gru"}


def domain_from(arrays, labels, **options):
    dataset = labelled_dataset(from_arrays(arrays, labels), DataOptions(**options), name="t")
    return domain_of(dataset)


def small(domain, layers="min_gru*2", seed=0):
    torch.manual_seed(seed)
    return SequenceModel(domain.config(layers, 16)).eval()


def probabilities(rows=80, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    chance = rng.dirichlet(np.ones(classes), rows).round(2) + 1e-3  # rounded: ties
    return chance / chance.sum(1, keepdims=True), rng.integers(0, classes, rows)


# Metrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_class_metrics_are_those_of_scikit_learn(classes):
    sk = pytest.importorskip("sklearn.metrics", reason="pip install 'stepscan[timeseries]'")
    chance, label = probabilities(classes=classes)
    said, found = chance.argmax(1), metrics.class_scores(chance, label)
    several = {"multi_class": "ovr"} if classes > 2 else {}
    wanted = {
        "accuracy": sk.accuracy_score(label, said),
        "balanced accuracy": sk.balanced_accuracy_score(label, said),
        "macro F1": sk.f1_score(label, said, average="macro"),
        "AUC": sk.roc_auc_score(label, chance if classes > 2 else chance[:, 1], **several),
        "log loss": sk.log_loss(label, chance, labels=range(classes)),
        "Brier score": np.mean(((chance - np.eye(classes)[label]) ** 2).sum(1)),
    }
    assert {k: found[k] for k in wanted} == {k: pytest.approx(v) for k, v in wanted.items()}
    assert list(found) == [m.name for m in metrics.CLASS_METRICS]


def test_metrics_of_a_class_that_does_not_occur():
    chance, label = probabilities(classes=3)
    label[label == 2] = 1
    table = metrics.confusion(chance.argmax(1), label, 3)
    sk = pytest.importorskip("sklearn.metrics", reason="pip install 'stepscan[timeseries]'")
    assert metrics.macro_f1(table) == pytest.approx(
        sk.f1_score(label, chance.argmax(1), average="macro")
    )
    recalls = [np.mean(chance.argmax(1)[label == k] == k) for k in (0, 1)]
    assert metrics.balanced_accuracy(table) == pytest.approx(np.mean(recalls))
    assert metrics.auc(chance, np.zeros(len(label), int)) == 0.5


def test_calibration_error_by_its_definition():
    chance, label = probabilities(400)
    total = 0.0
    for b in range(metrics.BINS):
        low, high = b / metrics.BINS, (b + 1) / metrics.BINS
        inside = [i for i, p in enumerate(chance) if low <= p.max() < high]
        if inside:
            right = np.mean([chance[i].argmax() == label[i] for i in inside])
            total += len(inside) * abs(right - np.mean([chance[i].max() for i in inside]))
    assert metrics.calibration_error(chance, label) == pytest.approx(total / 400)
    sure = np.eye(4)[label]
    assert metrics.calibration_error(sure, label) == 0
    assert metrics.calibration_error(sure, (label + 1) % 4) == 1


def test_number_metrics_are_those_of_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics", reason="pip install 'stepscan[timeseries]'")
    rng = np.random.default_rng(0)
    real, said = rng.normal(size=50), rng.normal(size=50)
    wanted = {
        "RMSE": sk.mean_squared_error(real, said) ** 0.5,
        "MAE": sk.mean_absolute_error(real, said),
        "R2": sk.r2_score(real, said),
    }
    assert metrics.number_scores(said, real) == pytest.approx(wanted)
    assert metrics.number_scores(said, np.ones(50))["R2"] == 0


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_edit_distance(a, b, wanted):
    assert metrics.edit_distance(a, b) == metrics.edit_distance(b, a) == wanted


def test_a_model_that_diverged_has_no_score():
    chance, label = probabilities()
    chance[3] = np.nan
    assert all(math.isnan(x) for x in metrics.class_scores(chance, label).values())


# Calibration ------------------------------------------------------------------------------------


def test_temperature_finds_what_was_done_to_the_logits():
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=rng)
    label = torch.multinomial(logits.softmax(-1), 1, generator=rng)[:, 0]
    for t in (0.5, 1.0, 3.0):
        assert temperature(logits * t, label) == pytest.approx(t, rel=0.08)
    flat = torch.eye(5)[label[:30]] * 4.0
    assert 0.05 < temperature(flat, label[:30]) < 4  # all right, and still no certainty
    wrong = torch.eye(5)[(label + 1) % 5] * 4.0
    assert temperature(wrong, label) > 15


def test_a_cooled_model_says_the_same_classes_with_other_probabilities():
    domain = domain_from(*waves())
    model = small(domain)
    before = last_outputs(model, domain.dataset.parts["test"])
    cool(model, 2.5)
    after = last_outputs(model, domain.dataset.parts["test"])
    torch.testing.assert_close(after, before / 2.5)


def test_calibration_lowers_the_log_loss_of_a_model_that_is_too_sure():
    domain = domain_from(*waves(240))
    model = small(domain)
    cool(model, 1 / 30)
    before = domain.score(model, "test")
    domain.calibrate(model)
    after = domain.score(model, "test")
    assert after["log loss"] < before["log loss"] / 2
    assert after["ECE"] < before["ECE"]
    assert after["accuracy"] == before["accuracy"]


# Reading whole sequences ------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [50, 300, 65_536])
def test_every_step_is_in_one_batch(steps):
    packed = domain_from(*waves()).dataset.parts["train"]
    seen = torch.cat([at[at >= 0] for _, at in batches(packed, steps)])
    assert seen.sort().values.equal(torch.arange(len(packed)))
    for chosen, at in batches(packed, steps):
        assert at[:, 0].equal(packed.begins[chosen])
        assert at.numel() <= steps or len(at) == 1


@pytest.mark.parametrize("layers", ["min_gru", "attention", "bi_gla"])
def test_a_sequence_is_read_as_if_alone(layers, monkeypatch):
    domain = domain_from(*waves(30))
    model, packed = small(domain, layers), domain.dataset.parts["train"]
    alone = []
    for begin, length in zip(packed.begins, packed.lengths, strict=True):
        _, reals = packed.inputs_at(torch.arange(int(begin), int(begin + length)))
        with torch.no_grad():
            alone.append(model(Inputs(reals=reals[None]))[0][0])
    monkeypatch.setattr("stepscan.apps.labelled.outputs.PIECE", 7)
    found = last_outputs(model, packed)
    torch.testing.assert_close(found, torch.stack([x[-1] for x in alone]), atol=1e-5, rtol=0)
    for x, y in zip(all_outputs(model, packed), alone, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


# Losses and baselines ---------------------------------------------------------------------------


def test_class_weights_and_smoothing_in_the_loss():
    logits, target = (
        torch.randn(2, 3, 4, requires_grad=True),
        torch.tensor([[-1, 0, 2], [3, -1, 0]]),
    )
    weights = (0.5, 1.0, 2.0, 4.0)
    head = Classify(classes=4, weights=weights, smoothing=0.1)
    found = loss(head, logits, {"label": target})
    asked = [(0, 1, 0), (0, 2, 2), (1, 0, 3), (1, 2, 0)]
    total = 0.0
    for b, t, y in asked:
        log_p = logits[b, t].log_softmax(-1)
        total -= 0.9 * weights[y] * log_p[y]
        total -= sum(0.1 / 4 * w * p for w, p in zip(weights, log_p, strict=True))
    assert found.mean.item() == pytest.approx(total.item() / 4, rel=1e-5)
    plain = loss(Classify(classes=4), logits, {"label": target}).mean
    assert plain.item() == pytest.approx(
        F.cross_entropy(logits[target >= 0], target[target >= 0]).item()
    )
    for wrong in ({"weights": (1.0,)}, {"weights": (1.0, 1.0, 1.0, 0.0)}, {"smoothing": 1.0}):
        with pytest.raises(ValueError, match="classify: want"):
            Classify(classes=4, **wrong)


def test_balanced_weights_are_those_of_scikit_learn():
    arrays, labels = waves(90)
    labels = ["rare" if i < 12 else x for i, x in enumerate(labels)]
    schema = (domain := domain_from(arrays, labels, class_weights="balanced")).schema
    told = [c for c, n in zip(schema.classes, schema.counts, strict=True) for _ in range(n)]
    sk = pytest.importorskip("sklearn.utils.class_weight", reason="stepscan[timeseries]")
    wanted = sk.compute_class_weight("balanced", classes=np.array(schema.classes), y=told)
    assert domain.head.weights == pytest.approx(wanted)
    assert domain_from(arrays, labels).head.weights == ()


def test_linear_models_are_those_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model", reason="stepscan[timeseries]")
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(80, 5)), rng.integers(0, 3, 80)
    design = torch.cat([torch.tensor(x), torch.ones(80, 1)], 1).double()
    ours = (design @ logistic(design, torch.tensor(label), 3, 2.0)).softmax(-1)
    wanted = linear.LogisticRegression(C=0.5, tol=1e-10, max_iter=5000).fit(x, label)
    assert ours.numpy() == pytest.approx(wanted.predict_proba(x), abs=1e-4)
    y = rng.normal(size=80)
    ours = design @ ridge(design, torch.tensor(y), 2.0)
    assert ours.numpy() == pytest.approx(linear.Ridge(alpha=2.0).fit(x, y).predict(x))


def test_statistics_by_hand():
    domain = domain_from([[1.0, 3.0, 2.0]] * 5 + [[4.0, 4.0, 7.0]] * 5, ["a"] * 5 + ["b"] * 5)
    packed, schema = domain.dataset.parts["train"], domain.schema
    found = statistics(packed, 3, ())
    for row, begin in zip(found.tolist(), packed.begins.tolist(), strict=True):
        x = packed.reals[begin : begin + 3, 0].double().numpy()
        change = np.diff(x)
        ends = [x.mean(), x.std(), x.min(), x.max(), x[0], x[-1], change.mean()]
        wanted = [np.log(3), *ends, np.abs(change).mean(), *x]
        assert row == pytest.approx(wanted, abs=1e-6)
    assert schema.reals == 1


def test_baselines_see_what_is_there_to_see():
    found = dict(domain_from(*waves(120)).baselines())
    assert found["most frequent"]["accuracy"] == pytest.approx(1 / 3, abs=0.05)
    assert found["most frequent"]["AUC"] == 0.5
    assert found["linear"]["accuracy"] > 0.9  # the mean absolute change tells the frequency
    numbers = dict(domain_from(*levels(200)).baselines())
    assert numbers["mean"]["R2"] == pytest.approx(0, abs=0.1)
    assert numbers["linear"]["R2"] > 0.2


def test_the_penalty_is_not_chosen_on_the_test_part():
    rng = torch.Generator().manual_seed(0)
    x = {k: torch.randn(40, 6, generator=rng).double() for k in ("train", "valid", "test")}
    label = {k: torch.randint(0, 3, (40,), generator=rng) for k in ("train", "valid")}
    alone = linear_classes({**x, "test": x["test"][:1]}, label, 3)
    assert linear_classes(x, label, 3)[:1] == pytest.approx(alone)


# Models -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sensors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    sensors_frame().to_csv(folder / "sensors.csv", index=False)
    fit(folder / "sensors.csv", out=folder / "run", **TINY)
    return folder


def test_a_question_in_any_form(sensors):
    model = ss.load(sensors / "run")
    frame = sensors_frame()
    one = frame[frame["recording"] == "r003"]
    wanted = model.predict(one[["x", "noise"]].to_numpy())
    assert len(wanted) == 3
    assert sum(p.probability for p in wanted) == pytest.approx(1)
    assert model.predict(one) == model.predict(one[["x", "noise"]].values.tolist()) == wanted
    table = model.predict_table(frame)
    assert list(table) == sorted(frame["recording"].unique())
    assert [p.what for p in table["r003"]] == [p.what for p in wanted]
    assert [p.probability for p in table["r003"]] == pytest.approx(
        [p.probability for p in wanted], abs=1e-5
    )
    chances = model.probabilities([one, one[:5]])
    by_name = {p.what: p.probability for p in wanted}
    assert chances[0] == pytest.approx([by_name[c] for c in model.schema.classes], abs=1e-5)
    assert chances.shape == (2, 3)
    with pytest.raises(ValueError, match="top >= 1"):
        model.predict(one, top=0)


@pytest.mark.parametrize("cuts", [[1], [7, 8], list(range(1, 20))], ids=str)
def test_streams_say_after_every_step_what_prediction_says_then(sensors, cuts):
    model = ss.load(sensors / "run")
    one = waves(4)[0][3]
    whole, end = model.stream(one)
    pieces = np.split(one, cuts)
    state, said = None, []
    for piece in pieces:
        chance, state = model.stream(piece, state)
        said.append(chance)
    assert torch.cat(said).numpy() == pytest.approx(whole.numpy(), abs=1e-5)
    assert state.steps == end.steps == len(one)
    for t in (1, 5, len(one)):
        assert whole[t - 1].numpy() == pytest.approx(model.probabilities([one[:t]])[0], abs=1e-5)
    answers = list(model.predict_stream(pieces))
    assert len(answers) == len(pieces)
    assert answers[-1][0].what == model.predict(one)[0].what


def test_numbers_come_back_in_their_own_unit(tmp_path):
    arrays, numbers = levels()
    domain = domain_from(arrays, [100 + x for x in numbers])
    model = ss.Model(small(domain), domain.schema)
    said = model.predict(arrays[0])
    assert said == pytest.approx(float(model.stream(arrays[0])[0][-1]), abs=1e-4)
    streamed = list(model.predict_stream([arrays[0][:3], arrays[0][3:]]))
    assert said == pytest.approx(streamed[-1], abs=1e-4)
    assert abs(said - 100) < 50
    with pytest.raises(DataError, match="says a number"):
        model.probabilities(arrays)


def test_what_cannot_be_asked(sensors):
    model = ss.load(sensors / "run")
    with pytest.raises(DataError, match=r"want 2 channels of numbers.*x, noise.*got 1"):
        model.predict([1.0, 2.0])
    with pytest.raises(DataError, match='no column "noise"'):
        model.predict_table(sensors_frame().rename(columns={"noise": "sound"}))
    with pytest.raises(ValueError, match="wants a model of text, this one is of labelled"):
        model.generate("a")


def test_ties_in_accuracy_are_decided_by_log_loss():
    domain = domain_from(*waves())
    scores = {m.name: 0.5 for m in metrics.CLASS_METRICS}
    assert domain.better(scores | {"log loss": 0.4}, scores)
    assert not domain.better(scores | {"log loss": 0.6}, scores)
    assert domain.better(scores | {"accuracy": 0.6, "log loss": 0.6}, scores)


def test_letters_can_be_asked_for(tmp_path):
    letters_frame().to_csv(tmp_path / "letters.csv", index=False)
    model = fit(tmp_path / "letters.csv", out=tmp_path / "run", **TINY)
    assert {p.what for p in model.predict(list("cdabef"))} == {"ab", "ba"}
    assert model.predict(list("abz"))[0].probability <= 1
    with pytest.raises(DataError, match="want 1 channels of words"):
        model.predict([1.0, 2.0])


def test_the_command_line_classifies_a_file(sensors, capsys):
    run, file = str(sensors / "run"), str(sensors / "sensors.csv")
    assert main(["predict", run, "--file", file, "--top", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 60
    assert set(rows[0]) == {"of", "place", "what", "probability"}
    assert main(["predict", run, "--file", "nothing.csv"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_pixels_are_asked_for_one_after_the_other(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="pip install 'stepscan[examples]'")
    fit("digits", out=tmp_path / "run", **TINY)
    pixels = [str(x) for x in np.arange(64) % 17]
    assert main(["predict", str(tmp_path / "run"), *pixels, "--top", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["predict", str(tmp_path / "run"), "black", "white"]) == 2
    assert "want 1 channels of numbers" in capsys.readouterr().err


def test_the_report_shows_who_was_taken_for_whom(sensors):
    found = json.loads((sensors / "run" / "results.json").read_text())["sections"][0]["examples"]
    by_type = {one["type"]: one for one in found}
    counts = np.array(by_type["confusion"]["matrices"][0]["counts"])
    test = open_dataset(sensors / "sensors.csv").parts["test"]
    assert counts.sum() == len(test.begins)
    assert sum(n for _, _, n in by_type["calibration"]["curves"][0]["bins"]) == counts.sum()
    page = (sensors / "run" / "report.html").read_text()
    assert 'aria-label="confusion matrix of min_gru"' in page
    assert 'aria-label="calibration of min_gru"' in page


def spelling(count=200, seed=0):
    """Sequences of 2 channels that spell words of a and b: up is a, down is b, silence between."""
    rng = np.random.default_rng(seed)
    arrays, words = [], []
    for _ in range(count):
        word = "".join(rng.choice(list("ab"), int(rng.integers(1, 5))))
        x = [0.0] * int(rng.integers(1, 4))
        for letter in word:
            x += [1.0 if letter == "a" else -1.0] * int(rng.integers(1, 3))
            x += [0.0] * int(rng.integers(1, 4))
        arrays.append(np.stack([x, np.zeros(len(x))], 1) + 0.1 * rng.normal(size=(len(x), 2)))
        words.append(word)
    return arrays, words


@pytest.fixture(scope="module")
def speller():
    domain = domain_from(*spelling(), answer="text")
    train = TrainConfig(steps=150, rows=16, length=domain.recipe.length, learning_rate=1e-2)
    candidate = Candidate(domain, domain.config("gru", 32), train)
    candidate.trainer.run()
    return domain, ss.Model(candidate.finish(), domain.schema)


def test_texts_are_learned_and_read(speller):
    domain, model = speller
    scores = domain.score(model.network)
    assert scores["CER"] <= 0.1
    arrays, words = spelling(20, seed=5)
    assert np.mean([a == b for a, b in zip(model.predict_many(arrays), words, strict=True)]) > 0.7
    by_beam = model.predict_many(arrays, beams=8)
    assert np.mean([a == b for a, b in zip(by_beam, words, strict=True)]) > 0.7
    baselines = dict(domain.baselines())
    assert baselines["nothing"]["CER"] == 1
    assert scores["CER"] < baselines["middle text"]["CER"] < 1
    (shown,) = domain.examples({"gru": model.network})
    assert shown["columns"] == ["written", "gru"]


@pytest.mark.parametrize("beams", [1, 8])
@pytest.mark.parametrize("cuts", [[2], [1, 2, 3], [5, 6]], ids=str)
def test_a_text_streamed_is_the_text_of_the_whole(speller, beams, cuts):
    _, model = speller
    arrays, _ = spelling(10, seed=9)
    for one in arrays:
        *_, last = model.predict_stream(
            np.split(one, [c for c in cuts if c < len(one)]), beams=beams
        )
        assert last == model.predict(one, beams=beams)


def test_channels_are_disturbed_in_training_alone():
    arrays, labels = waves(60)
    arrays[0][3, 0] = np.nan
    domain = domain_from(arrays, labels, augment="jitter=0.5")
    plain = domain_from(arrays, labels)
    model, seen = small(domain), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].reals))
    packed = domain.dataset.parts["train"]
    batch = gather(packed, torch.arange(20)[None])
    torch.manual_seed(0)
    domain.objective(model, batch, None)
    change = seen[0] - batch.reals
    assert float(change[..., :2].std()) == pytest.approx(0.5, rel=0.4)
    assert seen[0].shape == batch.reals.shape
    assert not change[..., 2:].any()  # flags
    plain.objective(model, batch, None)
    assert seen[1].equal(batch.reals)
    assert domain.score(model) == plain.score(model)
    with pytest.raises(ValueError, match="Did you mean 'jitter'"):
        domain_from(arrays, labels, augment="jiter=1")
    with pytest.raises(DataError, match="there are none"):
        domain_from([list("abc"), list("bca")] * 10, ["x", "y"] * 10, augment="jitter=1")


@pytest.mark.parametrize("answer", ["class", "number"])
def test_training_learns_what_there_is(answer):
    """The frequency of a wave is read far above chance; the level of noise is no constant."""
    arrays, labels = waves(240) if answer == "class" else levels(240)
    domain = domain_from(arrays, labels)
    train = TrainConfig(steps=120, rows=16, length=domain.recipe.length, learning_rate=1e-2)
    candidate = Candidate(domain, domain.config("gru", 32), train)
    candidate.trainer.run()
    scores = domain.score(candidate.finish())
    if answer == "class":
        assert scores["accuracy"] >= 0.9
        assert scores["ECE"] <= 0.2
    else:
        assert scores["R2"] >= 0.5
