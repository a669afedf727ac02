"""Estimators: scikit-learn's conventions hold, and answers are those of the model inside."""

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from made_up_data import events_frame, interactions_frame, series_frame

import stepscan as ss
from stepscan.data import DataError

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks as checks

from stepscan.apps.estimators import as_sequences

ALL = [
    ss.SequenceClassifier,
    ss.SequenceRegressor,
    ss.Forecaster,
    ss.NextEventPredictor,
    ss.Recommender,
]
FAST = {"steps": 3, "width": 8, "rows": 4, "layers": "min_gru"}
CONVENTIONS = [
    "check_no_attributes_set_in_init",
    "check_get_params_invariance",
    "check_set_params",
    "check_parameters_default_constructible",
    "check_estimator_repr",
    "check_estimator_cloneable",
]


def waves(count=90, seed=0, lengths=(12, 25)):
    """Sequences of two channels whose class is how fast they turn."""
    rng = np.random.default_rng(seed)
    y = rng.choice(["slow", "fast", "still"], count)
    speed = {"slow": 0.3, "fast": 1.2, "still": 0.0}
    X = []
    for kind in y:
        t = np.arange(rng.integers(*lengths)) * speed[kind] + rng.uniform(0, 6)
        X.append(np.stack([np.sin(t), np.cos(t)], 1) + 0.1 * rng.normal(size=(len(t), 2)))
    return X, y


@pytest.fixture(scope="module")
def classifier():
    X, y = waves()
    return ss.SequenceClassifier(**{**FAST, "steps": 150, "width": 16, "rows": 16}).fit(X, y)


@pytest.mark.parametrize("check", CONVENTIONS)
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_conventions_hold(kind, check):
    found = getattr(checks, check)
    if check == "check_parameters_default_constructible":
        found(kind.__name__, kind())
    else:
        found(kind.__name__, kind(**FAST))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_before_fit_it_says_so(kind):
    with pytest.raises(NotFittedError, match="call fit first"):
        kind().predict(np.zeros((2, 3)))


def test_clone_keeps_parameters_and_forgets_the_model(classifier):
    other = clone(classifier)
    assert other.get_params() == classifier.get_params()
    assert not hasattr(other, "model_")
    assert other.set_params(width=24).width == 24


def test_unknown_parameters_are_refused():
    with pytest.raises(TypeError, match="widht"):
        ss.SequenceClassifier(widht=3)
    with pytest.raises(ValueError, match="Invalid parameter 'widht'"):
        ss.SequenceClassifier().set_params(widht=3)


# Sequences ---------------------------------------------------------------------------------------


def test_classes_are_those_given_and_learned(classifier):
    X, y = waves(40, seed=7)
    assert classifier.classes_.tolist() == ["fast", "slow", "still"]
    chances = classifier.predict_proba(X)
    assert chances.shape == (40, 3)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-6)
    assert (classifier.predict(X) == classifier.classes_[chances.argmax(1)]).all()
    assert classifier.score(X, y) > 0.8
    named = classifier.model_.predict(X[0], top=1)[0].what
    assert named == classifier.predict(X[:1])[0]


def test_answers_do_not_depend_on_what_is_asked_beside(classifier):
    X, _ = waves(12, seed=3)
    whole = classifier.predict_proba(X)
    each = np.concatenate([classifier.predict_proba([x]) for x in X])
    np.testing.assert_allclose(whole, each, atol=1e-5)


@pytest.mark.parametrize(
    "names", [[0, 1, 2], [-1.5, 2.0, 30.25], [False, True, True], ["nan", " a", "a"]]
)
def test_classes_of_any_type_come_back_as_they_were(names):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 9))
    y = np.array(names)[rng.integers(0, 3, 40)]
    found = ss.SequenceClassifier(**FAST).fit(X, y)
    assert found.predict(X).dtype == y.dtype
    assert set(found.predict(X)) <= set(y)


def test_arrays_of_two_and_three_axes_are_sequences():
    X = np.random.default_rng(0).normal(size=(4, 9, 2))
    assert [x.shape for x in as_sequences(X)] == [(9, 2)] * 4
    assert [x.shape for x in as_sequences(X[:, :, 0])] == [(9, 1)] * 4


def test_numbers_are_learned_in_their_own_unit():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 10))
    y = 5_000 + 300 * X[:, -1]
    fast = {**FAST, "steps": 250, "width": 16, "rows": 32, "learning_rate": 1e-2, "dropout": 0.0}
    found = ss.SequenceRegressor(**fast).fit(X, y)
    assert found.predict(X).shape == (120,)
    assert found.score(X, y) > 0.7


def test_the_same_seed_gives_the_same_model():
    X, y = waves(40)
    one, two, other = (
        ss.SequenceClassifier(random_state=seed, **FAST).fit(X, y).predict_proba(X)
        for seed in (1, 1, 2)
    )
    assert (one == two).all()
    assert (one != other).any()
    drawn = ss.SequenceClassifier(random_state=np.random.RandomState(0), **FAST).fit(X, y)
    assert drawn.predict(X).shape == (40,)


def test_it_works_inside_pipelines_and_cross_validation():
    X, y = waves(60, lengths=(12, 13))
    pipe = make_pipeline(FunctionTransformer(np.negative), ss.SequenceClassifier(**FAST))
    scores = cross_val_score(pipe, np.stack(X), y, cv=2)
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_it_can_be_sent_elsewhere(classifier):
    X, _ = waves(5, seed=1)
    there = pickle.loads(pickle.dumps(classifier))
    assert (there.predict_proba(X) == classifier.predict_proba(X)).all()


@pytest.mark.parametrize(
    ("X", "y", "said"),
    [
        (np.zeros((8, 5)), list("ababab"), "want a label a sequence, got 8 and 6"),
        (np.zeros((8, 5)), list("aaaaaaaa"), "two classes or more, got 1"),
        ([np.zeros((5, 2)), np.zeros((5, 3))] * 4, list("abababab"), r"sequence 1: want an array"),
        ([np.zeros(5), np.zeros(0)] * 4, list("abababab"), "with steps >= 1"),
        ([], [], "two classes or more, got 0"),
    ],
    ids=["labels", "classes", "channels", "empty", "none"],
)
def test_what_does_not_fit_is_one_line(X, y, said):
    with pytest.raises(DataError, match=said) as caught:
        ss.SequenceClassifier(**FAST).fit(X, y)
    assert "\n" not in str(caught.value)


def test_other_channels_than_learned_are_refused(classifier):
    with pytest.raises(DataError, match=r"sequence 0: want an array \[steps, 2\]"):
        classifier.predict([np.zeros((5, 3))])


# Frames ------------------------------------------------------------------------------------------


def test_the_forecaster_forecasts_and_goes_on():
    frame = series_frame(("a",)).dropna()
    first, later = frame.iloc[:-5], frame.iloc[-5:]
    model = ss.Forecaster(horizon=6, valid=24, test=24, **FAST).fit(first)
    told = model.predict()
    assert len(told) == 6
    pd.testing.assert_frame_equal(told, model.model_.forecast(first))
    assert model.scores_ == model.model_.about["test"]
    after = model.update(later).predict()
    assert after["time"].iloc[0] > told["time"].iloc[0]
    with pytest.raises(DataError, match="read before"):
        model.update(later)


def test_the_next_event_is_predicted_for_each_case():
    frame = events_frame()
    model = ss.NextEventPredictor(**FAST).fit(frame)
    chances = model.predict_proba(frame)
    assert list(chances.index) == sorted(frame["case"].unique())
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-6)
    wanted = {case: said[0].what for case, said in model.model_.predict_table(frame).items()}
    assert model.predict(frame).to_dict() == wanted
    right, asked = 0, 0
    for _, rows in frame.groupby("case"):
        names, times = list(rows["activity"]), list(rows["timestamp"])
        for k in range(1, len(names)):
            best = model.model_.predict(names[:k], times=times[:k], top=1)[0].what
            right, asked = right + (best == names[k]), asked + 1
        if asked > 40:
            break
    some = frame[frame["case"] <= rows["case"].iloc[0]]
    assert model.score(some) == pytest.approx(right / asked)


def test_the_recommender_recommends():
    frame = interactions_frame()
    model = ss.Recommender(minimum=2, **FAST).fit(frame)
    found = model.predict(top=3)
    assert found.groupby("user").size().eq(3).all()
    one = frame[frame["user"] == "u03"]
    alone = model.predict(one, top=3)
    assert alone["item"].tolist() == found[found["user"] == "u03"]["item"].tolist()
    seen = model.predict(one, top=3, exclude_seen=True)
    assert not set(seen["item"]) & set(one["item"])


def test_what_to_install_is_said():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import stepscan as ss\n"
        "try: ss.Forecaster\n"
        "except ImportError as error: assert 'stepscan[sklearn]' in str(error); sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 7
