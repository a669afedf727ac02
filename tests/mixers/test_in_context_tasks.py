"""What n-gram heads are for: languages learned from the strings at hand."""

from functools import cache

import pytest
import torch
from small_training import build, train

from stepscan.apps.bench.protocol import Protocol, config_of
from stepscan.mixers.gla import GLAConfig
from stepscan.mixers.ngram_head import NgramHeadConfig
from stepscan.models import SequenceModel
from stepscan.tasks.in_context_language import InContextLanguage, ngram_reference

pytestmark = [pytest.mark.slow, pytest.mark.plain]

TASK = InContextLanguage()


def everywhere(n, rng):
    """Ask for each symbol, as a language model is."""
    batch = TASK.draw(n, rng)
    return batch._replace(asked=batch.truth.sum(-1) > 0)


def distance(p, batch):
    """Total variation between what is said and the truth."""
    asked = batch.truth.sum(-1) > 0
    return (p - batch.truth).abs().sum(-1)[asked].mean().item() / 2


@torch.no_grad()
def test_ngram_heads_learn_a_language_in_context(record_property):
    """The distance to the truth falls by a fifth, for automata that were not in training."""
    batch = TASK.held_out().draw(256, torch.Generator().manual_seed(9))
    found = {
        f"{n}-grams": distance(ngram_reference(batch.input, 8, order=n), batch) for n in (1, 2, 3)
    }
    for name, layers in (
        ("gla", (GLAConfig(),) * 2),
        ("with heads", (GLAConfig(), NgramHeadConfig(), GLAConfig())),
    ):
        model = build(layers, (TASK.vocab,), width=32)
        with torch.enable_grad():
            train(model, everywhere, steps=600)
        found[name] = distance(model(batch.input)[0][..., :8].softmax(-1), batch)
    record_property("total variation", found)
    assert found["with heads"] <= 0.8 * found["gla"]


@cache
@torch.no_grad()
def learned(mixer):
    """Distance to the truth of two layers, 60,000 parameters in all, for unseen automata."""
    torch.manual_seed(0)
    model = SequenceModel(config_of(mixer, TASK, Protocol()))
    with torch.enable_grad():
        train(model, everywhere, steps=1000)
    batch = TASK.held_out().draw(256, torch.Generator().manual_seed(9))
    return distance(model(batch.input)[0].softmax(-1), batch)


@pytest.mark.parametrize("mixer", ["gla"])
def test_a_transformer_learns_languages_better_than_recurrences_of_its_size(mixer, record_property):
    found = {name: learned(name) for name in ("attention", mixer)}
    record_property("total variation", found)
    assert found["attention"] < found[mixer]
