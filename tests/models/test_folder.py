"""A model folder is whole or not there; what was changed on disk is noticed, never executed."""

import json
import os

import pytest
import torch

from stepscan.mixers import MIXERS
from stepscan.models import ModelConfig, NextToken, SequenceModel, folder, load_folder, save_folder

HEAD = NextToken(vocab=5)


def make(layers="gla min_gru", **options):
    config = ModelConfig(width=16, tokens=(5,), head=HEAD, layers=layers, **options)
    return SequenceModel(config).eval()


@pytest.fixture
def saved(tmp_path):
    model = make()
    return model, save_folder(model, tmp_path / "model", extra={"note": [1, "two"]})


def test_what_was_saved_is_loaded(saved):
    model, path = saved
    again, extra = load_folder(path)
    tokens = torch.randint(5, (2, 9))
    assert torch.equal(again(tokens)[0], model(tokens)[0])
    assert again.head.map.weight is again.embed.tables[0].weight
    assert extra == {"note": [1, "two"]}
    assert names_in(path) == ["config.json", "weights.safetensors"]
    assert names_in(path.parent) == ["model"]


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_comes_back(name, tmp_path):
    model = make(name)
    again, _ = load_folder(save_folder(model, tmp_path / "model"))
    tokens = torch.randint(5, (2, 9))
    assert torch.equal(again(tokens)[0], model(tokens)[0])


def test_saving_again_replaces(saved):
    _, path = saved
    other = make("gla")
    save_folder(other, path, files={"tokenizer.json": b"{}"})
    again, extra = load_folder(path)
    assert len(again.blocks) == 1
    assert extra == {}
    assert names_in(path.parent) == ["model"]


def test_a_full_disk_leaves_the_old_model(saved, monkeypatch):
    model, path = saved

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_folder(make("gla"), path)
    assert len(load_folder(path)[0].blocks) == len(model.blocks)
    assert names_in(path.parent) == ["model"]


def names_in(path):
    return sorted(entry.name for entry in path.iterdir())


def edit(path, change):
    data = json.loads((path / "config.json").read_text())
    change(data)
    (path / "config.json").write_text(json.dumps(data))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "config.json").unlink(), "found none"),
        (lambda p: (p / "weights.safetensors").unlink(), "found none"),
        (lambda p: os.truncate(p / "config.json", 40), "not JSON.*cut off"),
        (lambda p: os.truncate(p / "weights.safetensors", 40), "truncated"),
        (lambda p: flip(p / "weights.safetensors"), "sha256 differs"),
        (lambda p: edit(p, lambda d: d.update(version=2)), "version 2.*reads version 1"),
        (lambda p: edit(p, lambda d: d.update(format="x")), "another kind of file"),
        (lambda p: edit(p, lambda d: d["model"].update(width=32)), "the config wants"),
        (lambda p: edit(p, lambda d: d["model"].update(widht=32)), "Did you mean 'width'"),
        (lambda p: edit(p, lambda d: d["model"].update(width=16_000_000)), "config"),
        (lambda p: edit(p, lambda d: d.pop("extra")), "want the parts"),
        (
            lambda p: edit(p, lambda d: d["files"].update({"../x": {"bytes": 1, "sha256": ""}})),
            "plain file in the model folder",
        ),
    ],
)
def test_damage_is_named(saved, damage, message):
    _, path = saved
    damage(path)
    with pytest.raises(folder.ModelCorruptError, match=message):
        load_folder(path)


def test_a_link_is_not_followed(saved, tmp_path):
    _, path = saved
    (path / "weights.safetensors").rename(tmp_path / "elsewhere")
    (path / "weights.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(folder.ModelCorruptError, match="plain file"):
        load_folder(path)


def test_nan_weights_are_refused(tmp_path):
    model = make()
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    path = save_folder(model, tmp_path / "model")
    with pytest.raises(folder.ModelCorruptError, match=r"norm.weight holds NaN"):
        load_folder(path)
