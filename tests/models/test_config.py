import dataclasses
import json

import pytest

from stepscan.mixers import MIXERS
from stepscan.models import (
    Classify,
    Cloze,
    Forecast,
    ModelConfig,
    NextEvent,
    NextItem,
    NextToken,
    Regress,
)
from stepscan.models.pattern import parse


def names(pattern):
    return [config.name for config in parse(pattern)]


def test_patterns_nest_repeat_and_take_options():
    assert names("gla") == ["gla"]
    assert names("(gla*2 min_gru)*2") == ["gla", "gla", "min_gru"] * 2
    assert names("((gla*2)*2 min_gru)") == ["gla"] * 4 + ["min_gru"]
    (config,) = parse("gla[heads=2, key_ratio=1.0]")
    assert (config.heads, config.key_ratio) == (2, 1.0)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "at least one mixer"),
        ("gla*0", "at least one mixer"),
        ("(gla", "never closed"),
        ("gla)", "without"),
        ("*3 gla", "before it"),
        ("gla*5000", "more than 1024"),
        ("(gla*1000)*1000", "more than 1024"),
        ("gla + gla", "cannot read"),
        ("gated_deltanet", "Did you mean 'gated_delta_net'"),
        ("gla[headz=2]", "Did you mean 'heads'"),
        ("gla[2]", "key=value"),
        ("gla[heads=open('x')]", "cannot read the options"),
    ],
)
def test_what_cannot_be_read_is_said(pattern, message):
    with pytest.raises(ValueError, match=message):
        parse(pattern)


def test_norms_stand_before_or_after():
    config = dict(head=NextToken(vocab=9), tokens=(9,), width=16, layers="gla*4")
    places = ModelConfig(**config, norm_place="before after").norm_places
    assert places == ("before", "after") * 2
    for place, message in (
        ("afterwards", "Did you mean 'after'"),
        ("before*3", "norm_place='before\\*3' to fit 4 layers"),
        ("before[eps=1]", "want no options"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig(**config, norm_place=place)


HEADS = [
    NextToken(vocab=9),
    NextEvent(vocab=9),
    Forecast(horizon=3),
    Classify(classes=2),
    Regress(outputs=2),
    NextItem(vocab=9, loss="sampled", negatives=4),
    Cloze(vocab=9, last=0.5),
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_a_config_survives_json(head):
    layers = "hgrn2*2 delta_net attention[window=8]"
    config = ModelConfig(width=32, tokens=(9, 4), reals=2, head=head, layers=layers)
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3


def test_every_mixer_survives_json():
    config = ModelConfig(tokens=(9,), head=HEADS[0], layers=tuple(c() for c in MIXERS.values()))
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_from_before_an_option_was_there_means_its_default():
    config = ModelConfig(tokens=(9,), head=HEADS[0], layers="mamba attention mamba2")
    old = config.to_dict()
    for key in ("norm", "norm_eps", "embedding_scale"):
        del old[key]
    old["head"] = {"name": "next_token", "vocab": 9}
    old["layers"] = [{"name": name} for name in ("mamba", "attention", "mamba2")]
    assert ModelConfig.from_dict(old) == config


def test_depth_is_told_to_the_mixers_that_ask():
    config = ModelConfig(tokens=(9,), head=HEADS[0], layers="hgrn2*3")
    assert [(c.layer, c.layers) for c in config.mixers] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.plain
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 3}, "Did you mean 'width'"),
        ({"width": 0}, "width from 1"),
        ({"width": 1 << 40}, "up to 16,777,216"),
        ({"width": "wide"}, "width from 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"norm": "layr"}, "unknown norm 'layr'. Did you mean 'layer'"),
        ({"norm_eps": -1.0}, "want 0 <= norm_eps < 1, got -1"),
        ({"head": {"name": "next_token", "vocab": 9, "soft_cap": 0.0}}, "soft_cap above 0"),
        ({"tokens": [], "reals": 0}, "at least one input column"),
        ({"head": {"name": "next_tokens"}}, "Did you mean 'next_token'"),
        ({"head": {"name": "next_token", "vocap": 3}}, "Did you mean 'vocab'"),
        ({"head": {"name": "forecast", "horizon": 0}}, "horizon >= 1"),
        ({"head": {"name": "forecast", "horizon": 3, "quantiles": [0.5, 0.1]}}, "ascending"),
        ({"layers": [{"name": "gla", "headz": 2}]}, "Did you mean 'heads'"),
        ({"layers": []}, "1 to 1024 layers"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    good = ModelConfig(tokens=(9,), head=HEADS[0], layers="gla").to_dict()
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(good | change)
