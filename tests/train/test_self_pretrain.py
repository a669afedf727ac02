"""Self-pretraining: inputs only, never those of the test, and what it costs is told."""

from dataclasses import dataclass, replace

import pytest
import torch

from stepscan.models import ModelConfig, NextToken, Regress, SequenceModel
from stepscan.tasks import TASKS, Parity
from stepscan.tasks.base import Batch
from stepscan.train.self_pretrain import self_pretrain, training_inputs


def model_of(task, layers="min_gru", seed=0):
    """A little model of a task."""
    torch.manual_seed(seed)
    if task.vocab:
        head, reads = NextToken(vocab=task.answers), {"tokens": (task.vocab,)}
    else:
        head, reads = Regress(outputs=task.outputs), {"reals": task.channels}
    return SequenceModel(ModelConfig(head=head, layers=layers, width=16, tie=False, **reads))


def weights(model, head):
    """Those of the head, or all others."""
    return {k: v for k, v in model.state_dict().items() if k.startswith("head.") == head}


def same(one, other):
    """Whether two sets of weights are bit for bit the same."""
    assert one.keys() == other.keys()
    return all(torch.equal(one[k], other[k]) for k in one)


@dataclass(frozen=True, kw_only=True)
class Watched(Parity):
    """Writes down what is asked of it; its answers are noise if `noise`."""

    noise: int = 0

    def draw(self, n, rng):
        """Draw, and change the answers."""
        batch = super().draw(n, rng)
        other = torch.Generator().manual_seed(self.noise)
        target = torch.randint(2, batch.target.shape, generator=other)
        asked = torch.rand(batch.asked.shape, generator=other) < 0.5
        return Batch(batch.input, target, asked) if self.noise else batch

    def held_out(self):
        """The test, which self-pretraining has no business with."""
        return Parity(length=self.length + 1)

    def longer(self, factor):
        """Another test."""
        pytest.fail("asked for a test")


@pytest.mark.parametrize("layers", ["min_gru", "hydra"])
def test_labels_take_no_part(layers):
    models = [model_of(Parity(), layers) for _ in range(2)]
    for noise, model in enumerate(models):
        self_pretrain(model, Watched(noise=noise), steps=3)
    assert same(models[0].state_dict(), models[1].state_dict())


def test_the_check_of_labels_can_fail():
    """Other labels do make another model where labels take part: the inputs are given away."""
    one, other = model_of(Parity()), model_of(Parity())
    self_pretrain(one, Watched(), steps=3)
    self_pretrain(other, Watched(length=Parity().length - 1), steps=3)
    assert not same(one.state_dict(), other.state_dict())


def test_test_inputs_take_no_part(monkeypatch):
    drawn = []
    monkeypatch.setattr(Watched, "held_out", lambda self: drawn.append(self) or Parity(length=99))
    seen = []
    real = Watched.draw
    draw = lambda self, n, rng: seen.append(self) or real(self, n, rng)  # noqa: E731
    monkeypatch.setattr(Watched, "draw", draw)
    self_pretrain(model_of(Parity()), Watched(), steps=3)
    assert seen == [Watched()] * 3
    assert all(task == Watched() for task in drawn)


@pytest.mark.parametrize("name", ["pixel_digits", "in_context_language"])
def test_the_held_out_form_is_refused(name):
    task = TASKS[name]()
    training_inputs(task)
    with pytest.raises(ValueError, match="take the one to train on"):
        training_inputs(task.held_out())


def test_digits_of_the_test_are_never_read():
    task = TASKS["pixel_digits"]()
    draw = training_inputs(task)
    tested = {tuple(row) for row in task.held_out().draw(2000, torch.Generator()).input.tolist()}
    trained = {tuple(row) for row in draw(2000, torch.Generator()).tolist()}
    assert len(trained) > 500
    assert len(trained & tested) <= 2  # some images are in the data twice


def test_the_same_seed_reads_the_examples_of_the_training():
    task = Parity()
    inputs = training_inputs(task)(4, torch.Generator().manual_seed(5))
    assert torch.equal(inputs, task.draw(4, torch.Generator().manual_seed(5)).input)


@pytest.mark.parametrize("layers", ["min_gru", "hydra"])
@pytest.mark.parametrize("name", ["rule_grammar", "adding"])
def test_all_but_the_head_learns(layers, name):
    task = TASKS[name]()
    model = model_of(task, layers)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    facts = self_pretrain(model, task, steps=20, rate=1e-2)
    assert facts["objective"] == ("denoise" if layers == "hydra" else "next")
    assert facts["loss"][1] < facts["loss"][0]
    moved = {k for k, v in weights(model, head=False).items() if not torch.equal(v, before[k])}
    assert len(moved) > len(weights(model, head=False)) / 2
    assert all(torch.equal(v, before[k]) for k, v in weights(model, head=True).items())


def test_it_repeats_and_leaves_the_seed_alone():
    one, other = model_of(Parity()), model_of(Parity())
    self_pretrain(one, Parity(), steps=3)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    self_pretrain(other, Parity(), steps=3)
    assert torch.equal(torch.rand(3), expected)
    assert same(one.state_dict(), other.state_dict())


def test_it_tells_what_it_cost():
    task = Parity()
    facts = self_pretrain(model_of(task), task, steps=4, batch=8)
    assert facts["steps"] == 4
    length = task.draw(1, torch.Generator()).input.shape[1]
    assert facts["tokens"] == 4 * 8 * length
    assert facts["seconds"] > 0


def test_what_explodes_stops_early():
    task = TASKS["adding"]()
    assert self_pretrain(model_of(task, "plrnn"), task, steps=30, rate=1e30)["steps"] < 30


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="steps >= 1"):
        self_pretrain(model_of(Parity()), Parity(), steps=0)
    with pytest.raises(ValueError, match="denoise"):
        self_pretrain(model_of(Parity(), "hydra"), Parity(), steps=1, objective="next")


def test_a_tied_head_stays_tied():
    task = TASKS["copying"]()
    config = replace(model_of(task).config, head=NextToken(vocab=task.vocab), tie=True)
    tied = SequenceModel(config)
    assert tied.head.map.weight is tied.embed.tables[0].weight
    self_pretrain(tied, task, steps=2)
    assert tied.head.map.weight is tied.embed.tables[0].weight
