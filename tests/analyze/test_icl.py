"""Learners in context: the reference algorithms, weights written by hand, trained models."""

from functools import cache

import pytest
import torch
from small_training import build_real, train

from stepscan.analyze.icl import (
    difference,
    hidden,
    implied_weights,
    least_squares,
    neighbours,
    of_model,
    one_step,
    probe,
    prompts,
    ridge,
)
from stepscan.mixers.attention import AttentionConfig
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.ridge_regression import ridge_regression
from stepscan.tasks.in_context_regression import SIZE, InContextRegression


def examples(count, *, prompts=64, queries=8, noise=0.0, seed=3):
    """x, y, queries and the true w; everything standard normal."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    w, x, q = draw(prompts, SIZE), draw(prompts, count, SIZE), draw(prompts, queries, SIZE)
    y = (x @ w[..., None]).squeeze(-1) + noise * draw(prompts, count)
    return x, y, q, w


def by_hand(input, *, fit):
    """Two layers whose weights are written down: the first puts each x beside the y that follows
    it, the second (`fit`: linear attention or a mesa layer) has the queries x, keys x, values y.
    """
    D = input.shape[-1] - 1
    read_x, read_y = torch.eye(D + 1)[:D].double(), torch.eye(D + 1)[D:].double()
    before = torch.cat([torch.zeros_like(input[:, :1]), input[:, :-1]], 1)  # one token back
    is_y = (input @ read_y.T != 0).double()
    q, k, v = input @ read_x.T, is_y * (before @ read_x.T), input @ read_y.T
    return fit(*(part[:, :, None] for part in (q, k, v)))[0][:, :, 0]


def gradient_step(noise):
    """The size is that of `one_step`: known where the step is made, not where it is read."""

    def answer(x, y, queries):
        size = x.shape[1] + SIZE + 1 + noise**2
        rows = [
            by_hand(prompts(x, y, q).double(), fit=linear_attention)[:, -1]
            for q in queries.unbind(1)
        ]
        return torch.cat(rows, 1) / size

    return answer


def ridge_step(noise):
    def fit(q, k, v):
        return ridge_regression(q, k, v, ridge=torch.full((1, SIZE), noise**2).double())

    def answer(x, y, queries):
        rows = [by_hand(prompts(x, y, q).double(), fit=fit)[:, -1] for q in queries.unbind(1)]
        return torch.cat(rows, 1)

    return answer


@pytest.mark.parametrize("count", [2, 5, 16])
@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_weights_by_hand_make_one_step_of_gradient_descent_and_of_ridge(count, noise):
    x, y, q, _ = examples(count, noise=noise)
    for constructed, reference, other in (
        (gradient_step(noise), one_step(noise), ridge(noise)),
        (ridge_step(noise), ridge(noise), one_step(noise)),
    ):
        torch.testing.assert_close(constructed(x, y, q), reference(x, y, q), atol=1e-5, rtol=0)
        assert difference(constructed, other, x, y, q) > 1e-2


def test_references_on_numbers_by_hand():
    """Two examples on the axes: w = (2, -1); a query between them."""
    x, y = torch.eye(2)[None], torch.tensor([[2.0, -1.0]])
    q = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    assert least_squares(x, y, q)[0].tolist() == pytest.approx([1, 2])
    assert ridge(1.0)(x, y, q)[0].tolist() == pytest.approx([0.5, 1])
    assert one_step()(x, y, q)[0].tolist() == pytest.approx([1 / 5, 2 / 5])  # 2 examples + 2 + 1
    assert neighbours(1)(x, y, q[:, 1:])[0].tolist() == pytest.approx([2])
    assert neighbours(2)(x, y, q[:, :1])[0].tolist() == pytest.approx([0.5])


def test_the_step_has_the_best_size():
    """Sizes 10 % above and below leave a larger error, over 20,000 prompts."""
    for noise in (0.0, 1.0):
        x, y, q, w = examples(6, prompts=20_000, noise=noise)
        true = (q @ w[..., None]).squeeze(-1)
        said = one_step(noise)(x, y, q)
        errors = [(f * said - true).square().mean().item() for f in (0.9, 1.0, 1.1)]
        assert min(errors) == errors[1]


def test_bayes_beats_every_other_reference_where_there_is_noise():
    x, y, q, w = examples(6, prompts=4000, noise=1.0)
    true = lambda *_: (q @ w[..., None]).squeeze(-1)  # noqa: E731
    best, *others = (
        difference(learner, true, x, y, q)
        for learner in (
            ridge(1.0),
            ridge(0.3),
            ridge(2.0),
            least_squares,
            one_step(1.0),
            neighbours(),
        )
    )
    assert best < min(others)


def test_implied_weights_of_linear_learners_are_their_own():
    x, y, q, w = examples(8, queries=12)
    found = implied_weights(least_squares, x, y, q)
    torch.testing.assert_close(found.weights, w)
    assert found.explained.min() > 1 - 1e-9
    assert implied_weights(neighbours(), x, y, q).explained.mean() < 0.9
    with pytest.raises(ValueError, match="want more queries than the 4 weights"):
        implied_weights(least_squares, x, y, q[:, :4])


def test_a_probe_finds_what_is_there_and_nothing_else():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(1000, 20, generator=rng)
    there = features @ torch.randn(20, 3, generator=rng)
    found = probe(features, there, ridge=1e-6)
    assert found.explained > 0.999
    assert found.control < 0.1
    assert probe(features, torch.randn(1000, 3, generator=rng)).explained < 0.1
    with pytest.raises(ValueError, match="want more than 40 prompts"):
        probe(features[:40], there[:40])


def test_prompts_are_what_the_task_draws():
    """A model that answers by the task's own oracle is least squares."""
    task = InContextRegression()
    x, y, q, _ = examples(7)
    learner = of_model(lambda input: (task.solve(input), None))
    assert difference(learner, least_squares, x, y, q) < 1e-6
    assert difference(learner, one_step(), x, y, q) > 0.1


def everywhere(task):
    """Ask after every x, as the source trains: also where the examples leave w open."""

    def draw(n, rng):
        batch = task.draw(n, rng)
        asked = batch.asked.clone()
        asked[:, ::2] = True
        return batch._replace(asked=asked)

    return draw


@cache
def trained(noise):
    """A transformer of four layers."""
    task = InContextRegression(noise=noise)
    model = build_real((AttentionConfig(),) * 4, task)
    return train(model, everywhere(task), steps=2000, rate=2e-3)


@pytest.mark.slow
@pytest.mark.plain
def test_a_trained_model_is_nearest_to_least_squares(record_property):
    """Nearer than to one step of gradient descent or to neighbours, from four examples on."""
    learner, found = of_model(trained(0.0)), {}
    references = {"squares": least_squares, "step": one_step(), "neighbours": neighbours()}
    for count in (4, 6, 8, 12):
        x, y, q, _ = examples(count, prompts=512, seed=11)
        for name, reference in references.items():
            found[name, count] = difference(learner, reference, x, y, q)
        assert found["squares", count] < found["step", count]
        assert found["squares", count] < found["neighbours", count]
    record_property("squared prediction differences", found)


@pytest.mark.slow
@pytest.mark.plain
def test_a_model_trained_with_noise_is_nearest_to_ridge(record_property):
    """Nearer to Bayes' answer than to any other reference, from four examples on."""
    learner, found = of_model(trained(1.0)), {}
    references = {
        "ridge": ridge(1.0),
        "squares": least_squares,
        "step": one_step(1.0),
        "neighbours": neighbours(),
    }
    for count in (4, 6, 8, 12):
        x, y, q, _ = examples(count, prompts=512, noise=1.0, seed=11)
        each = {name: difference(learner, r, x, y, q) for name, r in references.items()}
        found[count] = each
        assert min(each, key=each.__getitem__) == "ridge"
    record_property("squared prediction differences", found)


@pytest.mark.slow
@pytest.mark.plain
def test_probes_read_the_gradient_off_middle_layers(record_property):
    """X^T y of eight examples, after the query, 0.1 above probes of other prompts' X^T y."""
    model, (x, y, q, _) = trained(0.0), examples(8, prompts=2000, queries=1, seed=12)
    wanted = (x.mT @ y[..., None]).squeeze(-1)
    states = hidden(model, model.blocks, prompts(x, y, q[:, 0]))
    found = [probe(state, wanted) for state in states]
    record_property("probes by layer", found)
    assert max(p.explained for p in found[1:-1]) > max(0.0, *(p.control for p in found)) + 0.1
