"""Semantic codes: what is computed, then what joint training is worth (systems.md, row 67)."""

import functools

import pytest
import torch
from laws import assert_near
from made_up_catalogue import catalogue, ratings

from stepscan.apps.interactions.semantic import (
    SemanticConfig,
    SemanticItems,
    recommended,
    start_codes,
    train_semantic,
    uniformity,
)
from stepscan.data.base import DataOptions
from stepscan.data.open import open_dataset
from stepscan.models import ModelConfig, NextToken, SequenceModel
from stepscan.ops.quantize import perplexity
from stepscan.train.config import TrainConfig
from stepscan.train.loop import Trainer


@functools.cache
def shop():
    """Interactions with the rule of the catalogue, the words of each item as 0 and 1, and how often
    each was taken."""
    items = catalogue()
    taken, _ = ratings(items, users=250, steps=10, new=0.0)
    dataset = open_dataset(taken, DataOptions(minimum=1))
    words = (items["title"] + " " + items["style_name"]).str.get_dummies(" ")
    words.index = items["item"]
    features = torch.tensor(words.loc[list(dataset.schema.items)].to_numpy(), dtype=torch.float32)
    count = torch.bincount(dataset.parts["train"].tokens[:, 0].long(), minlength=len(features) + 1)
    return dataset, features, count[1:].double()


def built(seed=0, **options):
    _, features, _ = shop()
    torch.manual_seed(seed)
    return SemanticItems(features, SemanticConfig(**options))


def recall(model, part="test", count=None):
    dataset, _, popular = shop()
    found, came = recommended(model, dataset.parts[part], popular)
    return sum(want in row[:10] for row, want in zip(found, came.tolist(), strict=True)) / len(came)


def test_cold_identifiers_say_the_same_as_hard_ones():
    dataset, _, _ = shop()
    model = built().double().eval()
    items = dataset.parts["test"].tokens[:40, 0].long()[None]
    with torch.no_grad():
        hard = model.read(items, model.identify().chances)
        cold = model.read(items, model.identify(1e-7).chances)
        warm = model.read(items, model.identify(1.0).chances)
    assert (hard - cold).abs().max() < 1e-4
    assert (hard - warm).abs().max() > 1e-2


def test_only_items_of_the_catalogue_are_recommended():
    dataset, features, _ = shop()
    found, came = recommended(
        built().eval(), dataset.parts["test"], torch.arange(len(features)).double()
    )
    assert len(found) == len(came) == 250
    for row in found[:40]:
        assert len(row) == len(set(row)) >= 10
        assert min(row) >= 1
        assert max(row) <= len(features)


def test_uniform_use_costs_nothing_and_one_code_the_most():
    even = torch.eye(4)[torch.arange(8) % 4][:, None]
    assert_near(uniformity(even), torch.tensor(0.0), what="even")
    same = torch.eye(4)[torch.zeros(8, dtype=torch.long)][:, None]
    assert_near(uniformity(same), torch.tensor(4.0).log(), what="one code")


def test_the_second_stage_leaves_the_tokeniser_as_it_is():
    dataset, _, _ = shop()
    model = built()
    train_semantic(model, dataset.parts["train"], steps=0, how="two stages", first=3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_semantic(model, dataset.parts["train"], steps=2, how="two stages", first=0, start=False)
    for name, value in model.state_dict().items():
        kept = name in ("codes", "features") or name.startswith(("encode.", "decode."))
        assert torch.equal(value, before[name]) == kept, name
    assert all(p.requires_grad for p in model.parameters())


def test_joint_training_reaches_the_tokeniser_through_the_recommender():
    dataset, _, _ = shop()
    model = built(reconstruction=0.0, uniformity=0.0)
    start_codes(model, seed=0)
    before = model.codes.detach().clone()
    train_semantic(model, dataset.parts["train"], steps=2, start=False)
    assert not torch.equal(model.codes, before)


def test_codes_begin_among_the_items():
    model = built()
    start_codes(model, seed=0)
    used = model.identify().codes
    for level in range(model.config.levels):
        assert len(used[:, level].unique()) > model.config.codes / 2
    assert model.trie().leaves > 100
    before = model.codes.detach().clone()
    start_codes(model, seed=0)
    assert torch.equal(model.codes, before)


def test_settings_that_cannot_be_trained_are_refused():
    with pytest.raises(ValueError, match="coldest"):
        SemanticConfig(tau=0.1, coldest=1.0)
    with pytest.raises(ValueError, match="levels >= 1"):
        SemanticConfig(levels=0)


# What is learned.

STEPS, SEEDS = 150, (0, 1, 2)


@functools.cache
def trained(how, seed, uniform=1.0):
    dataset, _, _ = shop()
    model = built(seed, uniformity=uniform)
    train_semantic(model, dataset.parts["train"], steps=STEPS, how=how, seed=seed, length=16)
    return model


@pytest.mark.slow
def test_joint_training_is_as_good_as_two_stages(record_property):
    found = {how: [recall(trained(how, seed)) for seed in SEEDS] for how in ("joint", "two stages")}
    record_property("measured", found)
    joint, apart = (sum(values) / len(values) for values in found.values())
    assert joint >= apart


@pytest.mark.slow
def test_codes_stay_in_use_with_the_regulariser_and_collapse_without(record_property):
    used = {
        weight: [
            float(perplexity(trained("joint", seed, weight).identify().chances).min())
            for seed in SEEDS
        ]
        for weight in (1.0, 0.0)
    }
    record_property("measured", used)
    size = SemanticConfig().codes
    assert min(used[1.0]) >= size / 2
    assert max(used[0.0]) < size / 2


@pytest.mark.slow
def test_a_teacher_is_learned_from(record_property):
    """Reported, whichever way it goes."""
    dataset, _, _ = shop()
    config = ModelConfig(
        head=NextToken(vocab=dataset.schema.tokens[0]),
        layers="attention*2",
        width=48,
        tokens=dataset.schema.tokens,
        dropout=0.2,
    )
    torch.manual_seed(0)
    teacher = SequenceModel(config)
    plan = TrainConfig(steps=150, rows=32, length=16, learning_rate=3e-3)
    Trainer(teacher, dataset.parts["train"], plan).advance()
    alone = [recall(trained("joint", seed)) for seed in SEEDS[:2]]
    taught = []
    for seed in SEEDS[:2]:
        model = built(seed, distillation=0.5)
        train_semantic(
            model, dataset.parts["train"], steps=STEPS, seed=seed, length=16, teacher=teacher
        )
        taught.append(recall(model))
    record_property("measured", f"alone {alone}, with a teacher {taught}")
    assert sum(taught) > 0
