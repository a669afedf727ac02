"""Knowledge tracing: figures against independent ones, streams, and students made by a rule."""

import dataclasses

import numpy as np
import pytest
import torch
from laws import assert_near
from made_up_students import students

from stepscan import state as states
from stepscan.apps.candidate import Candidate
from stepscan.apps.fit import fit
from stepscan.apps.kinds import domain_of
from stepscan.apps.model import Model
from stepscan.apps.responses import baselines
from stepscan.apps.responses.domain import EARLY, _places, auc, figures
from stepscan.cli import main
from stepscan.data.base import DataOptions
from stepscan.data.open import open_dataset
from stepscan.models import Inputs
from stepscan.train.config import TrainConfig


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    path = tmp_path_factory.mktemp("answers") / "answers.csv"
    students(users=24, answers=20)[0].to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def model(answers, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return fit(answers, out=out, steps=4, width=16, rows=4, length=24, quiet=True)


HISTORY = [("q1.2", 1), ("q1.3", 0), ("q4.0", 1)]
TIMES = ["2024-01-01 08:00", "2024-01-01 08:02", "2024-01-03 09:00"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_area_is_that_of_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    score, right = rng.integers(0, 9, 200) / 4.0, rng.integers(0, 2, 200)  # with ties
    assert auc(score, right) == pytest.approx(metrics.roc_auc_score(right, score))
    assert auc(-score, right) == pytest.approx(1 - auc(score, right))
    found = figures(score - 1, right, np.arange(200))
    p = 1 / (1 + np.exp(1 - score))
    assert found["nats"] == pytest.approx(metrics.log_loss(right, p))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(right, p > 0.5))
    early = slice(0, EARLY)
    assert found[f"AUC of first {EARLY}"] == pytest.approx(auc(score[early], right[early]))


def test_places_count_from_the_last_reset_over_batches():
    resets = torch.tensor([[1, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1, 0]]).bool()
    whole = _places(resets, torch.zeros(0, dtype=torch.long))[1]
    assert whole.tolist() == [[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1]]
    before, first = _places(resets[:, :2], torch.zeros(0, dtype=torch.long))
    _, second = _places(resets[:, 2:], before)
    assert torch.equal(torch.cat([first, second], 1), whole)


def test_rasch_finds_the_difficulties_it_was_made_with():
    rng = np.random.default_rng(0)
    users, questions = 300, 20
    difficulty = rng.normal(size=questions)
    question = np.tile(np.arange(questions), users)
    ability = np.repeat(rng.normal(size=users), questions)
    right = (rng.random(len(question)) < 1 / (1 + np.exp(difficulty[question] - ability))).astype(
        int
    )
    starts = np.arange(len(question)) % questions == 0
    history = baselines.History(starts, question, 0 * question, right)
    found = baselines._difficulties(history, questions)
    assert np.corrcoef(found, difficulty)[0, 1] > 0.98
    said = baselines.rasch(history, history, questions)
    assert said[starts] == pytest.approx(1 / (1 + np.exp(found[question[starts]])))
    late = np.arange(len(question)) % questions >= 10
    assert auc(said[late], right[late]) > auc(-found[question][late], right[late]) + 0.02


def test_pfa_is_a_logistic_regression_on_counts():
    linear = pytest.importorskip("sklearn.linear_model")
    frame = students(users=60, answers=20)[0]
    domain = domain_of(open_dataset(frame, DataOptions()))
    train = baselines.history_of(domain.dataset.parts["train"])
    questions, skills = domain.schema.tokens[:2]
    said = baselines.pfa(train, train, questions, skills)
    _, skill, counts = baselines._counted(train)
    columns = np.zeros((len(said), questions + 3 * skills))
    rows = np.arange(len(said))
    columns[rows, train.question] = 1
    columns[rows, questions + train.skill] = 1
    columns[rows, questions + skills + train.skill] = counts[0]
    columns[rows, questions + 2 * skills + train.skill] = counts[1]
    weight = 1 / (2 * baselines.DECAY * len(said))
    peer = linear.LogisticRegression(C=weight, fit_intercept=False, max_iter=2000, tol=1e-8)
    want = peer.fit(columns, train.right).predict_proba(columns)[:, 1]
    assert np.abs(said - want).max() < 0.01
    assert skill.max() < skills


def test_the_score_is_the_area_of_what_the_model_says(model, answers):
    """User by user through `stream`, against the batched score."""
    domain = domain_of(open_dataset(answers))
    domain.recipe = dataclasses.replace(domain.recipe, length=24)
    found = domain.score(model.network, "test")
    packed = domain.dataset.parts["test"]
    frame = students(users=24, answers=20)[0]
    said, came = [], []
    lengths = {int(length) for length in packed.lengths}
    names = set()
    _, users = domain.schema.encode(Model.table(model, frame))
    held = np.random.default_rng(0).permutation(len(users))
    names = {users[i] for i in held[2 : 2 + len(packed.begins)]}
    for name in sorted(names):
        own = frame[frame["student"] == name]
        assert len(own) in lengths
        chance, _ = model.stream(own)
        said.append(chance.double().numpy())
        came.append(own["correct"].to_numpy())
    assert found["AUC"] == pytest.approx(auc(np.concatenate(said), np.concatenate(came)), abs=1e-6)


@pytest.mark.parametrize("cut", [1, 2])
def test_answers_may_come_one_after_the_other(model, cut):
    whole, last = model.stream(HISTORY, times=TIMES)
    first, state = model.stream(HISTORY[:cut], times=TIMES[:cut])
    rest, state = model.stream(HISTORY[cut:], state, times=TIMES[cut:])
    assert_near(torch.cat([first, rest]), whole, what="stream")
    assert model.ask(state, ["q0.0"]) == model.ask(last, ["q0.0"])


def test_asking_leaves_the_state_and_is_what_comes_next(model):
    _, state = model.stream(HISTORY, times=TIMES)
    asked = dict(model.ask(state, ["q1.2", "q5.1"], now="2024-01-03 09:05"))
    chance, _ = model.stream([("q5.1", 0)], state, times=["2024-01-03 09:05"])
    assert asked["q5.1"] == pytest.approx(float(chance[0]), abs=1e-6)
    again = dict(model.ask(state, ["q1.2", "q5.1"], now="2024-01-03 09:05"))
    assert again == asked


def test_an_answer_costs_the_same_however_long_the_history(model):
    _, short = model.stream(HISTORY)
    _, long = model.stream(HISTORY * 60)
    assert states.nbytes(short.layers) == states.nbytes(long.layers)
    assert len(long.memory.skills) <= len(model.schema.skills)


def test_predictions_name_questions_least_likely_first(model):
    found = model.predict(HISTORY, times=TIMES)
    assert {p.what for p in found} == set(model.schema.questions)
    assert [p.probability for p in found] == sorted(p.probability for p in found)
    assert model.predict(["q1.2=1", "q1.3=0", "q4.0=right"], times=TIMES) == found
    asked = model.predict(HISTORY, questions=["q7.0", "q1.2"])
    assert [p.what for p in asked] == ["q7.0", "q1.2"]
    assert len(model.predict([], top=2)) == 2


def test_the_review_holds_what_was_answered(model):
    found = model.review(HISTORY, times=TIMES, top=2)
    assert len(found) == 2
    assert {p.what for p in model.review(HISTORY)} == {"q1.2", "q1.3", "q4.0"}
    assert model.review([]) == []


@pytest.mark.filterwarnings("default")  # two answers are to a question that training lacks
def test_a_table_is_answered_user_by_user(model, answers):
    found = model.predict_table(answers, top=2)
    frame = students(users=24, answers=20)[0]
    assert set(found) == set(frame["student"])
    assert found["s0003"] == model.predict(frame[frame["student"] == "s0003"], top=2)


def test_a_model_comes_back_and_says_the_same(model):
    assert Model.load(model.about["folder"]).predict(HISTORY) == model.predict(HISTORY)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: m.predict(["q1.2"]), "want pairs of a question"),
        (lambda m: m.predict("q1.2=1"), "got a single string"),
        (lambda m: m.predict([("q1.2", 7)]), "response 7 to 'q1.2'"),
        (lambda m: m.predict([("q1.22", 1)]), "question 'q1.22' was never seen.*Did you mean"),
        (lambda m: m.predict(HISTORY, times=TIMES[:2]), "want one for each of 3 answers"),
        (lambda m: m.predict(HISTORY, times=TIMES[::-1]), "answer 2 is before"),
        (lambda m: m.predict(HISTORY, times=[1, 2, 3]), "want dates"),
        (lambda m: m.predict(HISTORY, top=0), "want top >= 1"),
    ],
)
def test_bad_requests_are_one_clear_line(model, ask, said):
    with pytest.raises(ValueError, match=said):
        ask(model)


def test_a_mixer_that_reads_both_ways_is_refused(answers):
    domain = domain_of(open_dataset(answers))
    with pytest.raises(ValueError, match="sees the response it is to judge"):
        domain.config("bi_gla")


def test_the_command_line_asks_too(model, capsys):
    folder = model.about["folder"]
    assert main(["predict", folder, "q1.2=1", "q1.3=0", "--top", "2"]) == 0
    assert "q" in capsys.readouterr().out
    assert main(["predict", folder, "q1.2"]) == 2
    assert "want pairs of a question" in capsys.readouterr().err


# What is learned (systems.md, row 69).


@pytest.fixture(scope="module")
def school():
    """Many students, and the chance of every held-out answer as it really was."""
    frame, chance = students(users=2000, answers=80)
    domain = domain_of(open_dataset(frame, DataOptions()))
    users = sorted(frame["student"].unique())
    order = np.random.default_rng(0).permutation(len(users))
    valid, test = round(0.1 * len(users)), round(0.2 * len(users))
    held = {users[i] for i in order[valid : valid + test]}
    mine = frame["student"].isin(held).to_numpy()
    oracle = auc(chance[mine], frame["correct"][mine].to_numpy())
    assert len(domain.dataset.parts["test"]) == mine.sum()
    return domain, oracle


def learned(domain, layers, steps, seed):
    recipe = domain.recipe
    config = TrainConfig(
        steps=steps,
        rows=recipe.rows,
        length=recipe.length,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        seed=seed,
        evaluations=6,
    )
    candidate = Candidate(domain, domain.config(layers), config)
    candidate.trainer.advance()
    return candidate.finish()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_forgetting_students_are_traced(school, seed, record_property):
    domain, oracle = school
    found = domain.score(learned(domain, None, 300, seed), "test")
    simple = dict(domain.baselines())
    told = {"model": found, "oracle": oracle, **simple}
    record_property("measured", told)
    assert found["AUC"] >= simple["Rasch (IRT)"]["AUC"] + 0.03
    assert found["AUC"] >= 0.95 * oracle
    early = f"AUC of first {EARLY}"
    assert found[early] > max(scores[early] for scores in simple.values())


@pytest.mark.slow
def test_the_review_attends_to_questions_of_the_same_skill(record_property):
    """Weights on pairs answered in the past, of the skill that is asked now and of others, where
    students differ most in what they have a talent for."""
    frame, _ = students(users=1200, answers=60, gain=0.6, talent=1.5)
    domain = domain_of(open_dataset(frame, DataOptions()))
    network = learned(domain, "review", 150, 0)
    found = domain.score(network, "test")
    packed = domain.dataset.parts["test"]
    block = network.blocks[0]
    same, other = [], []
    for begin, length in list(zip(packed.begins.tolist(), packed.lengths.tolist(), strict=True))[
        :60
    ]:
        inputs = Inputs(*(x[None] for x in packed.inputs_at(torch.arange(begin, begin + length))))
        with torch.no_grad():
            x = network.embed(inputs)
            _, _, weights = block.mixer.attend(block.norm(x))
        skill = inputs.tokens[0, :, 1]
        window = weights.shape[-1]
        for t in range(1, length):
            for j in range(max(1, t + 1 - window), t + 1):
                # step j holds the pair of the question before it
                kin = same if skill[j - 1] == skill[t] else other
                kin.append(float(weights[0, t, window - 1 - (t - j)]))
    ratio = np.mean(same) / np.mean(other)
    record_property("measured", f"{found}, same / other {ratio:.2f}")
    assert found["AUC"] >= dict(domain.baselines())["Rasch (IRT)"]["AUC"] + 0.03
    assert ratio >= 2
