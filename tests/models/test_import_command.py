"""Checkpoints with tokenizers, as people import them; and damaged ones, refused in one line."""

import json
import os
import re
import shutil

import pytest
import torch
from checkpoints import LLAMA3, VOCAB, config, edit, make
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from stepscan.apps.checkpoint import import_checkpoint
from stepscan.apps.model import Model
from stepscan.cli import main
from stepscan.models.imports import CheckpointError, read_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mamba")
    make("mamba with all", folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "mamba")
    return tmp_path / "mamba"


# Tokenizers --------------------------------------------------------------------------------------


def words_tokenizer():
    vocabulary = {"<s>": 0, "</s>": 1} | {f"▁w{i}": i for i in range(2, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def test_a_tokenizer_comes_along(copy, tmp_path, capsys):
    words_tokenizer().save(str(copy / "tokenizer.json"))
    assert main(["import", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert "tokenizer.json, kept" in capsys.readouterr().out
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (copy / "tokenizer.json").read_bytes()
    model = Model.load(tmp_path / "out")
    assert model.schema.begin("w5 w7") == [0, 5, 7]
    text = model.generate("w5 w7", length=6, temperature=0)
    bare = import_checkpoint(without(copy, "tokenizer.json"), tmp_path / "bare")
    numbers = bare.generate("0 5 7", length=6, temperature=0)
    words = [f"w{number}" for number in numbers.split() if int(number) > 1]  # not the special ones
    assert text == "".join(f" {word}" for word in words)
    assert len(words) > 3
    begun = model.stream("w5")[1]
    last = model.stream("w7", begun)[0][-1]
    torch.testing.assert_close(last, bare.stream("0 5 7")[0][-1], atol=1e-5, rtol=0)


def without(folder, name):
    (folder / name).unlink()
    return folder


def test_a_text_ends_at_its_last_token(copy, tmp_path):
    free = import_checkpoint(copy, tmp_path / "free").generate("3 4", length=9, temperature=0)
    words = free.split()
    third = next(i for i, word in enumerate(words) if i >= 2 and word not in words[:i])
    edit(copy, lambda data: data.update(eos_token_id=[36, int(words[third])]))
    model = import_checkpoint(copy, tmp_path / "ends")
    assert model.generate("3 4", length=9, temperature=0).split() == words[:third]
    assert model.generate("", length=9).split()  # begins with the checkpoint's first token
    edit(copy, lambda data: data.update(bos_token_id=None))
    with pytest.raises(ValueError, match="want a prompt: this model has no token that begins"):
        import_checkpoint(copy, tmp_path / "bare").generate()


def test_numbers_for_prompts_are_checked(copy, tmp_path):
    model = import_checkpoint(copy, tmp_path / "out")
    with pytest.raises(ValueError, match=r"want a prompt of token numbers, .* got 'Once'"):
        model.generate("Once")
    with pytest.raises(ValueError, match="token 37 is not one of this model's 37"):
        model.generate("37")
    with pytest.raises(ValueError, match="of tokens; ask it with generate"):
        model.predict(["a"])


# What is refused ---------------------------------------------------------------------------------


def weights(change):
    def apply(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def no_file(name):
    return lambda folder: (folder / name).unlink()


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")


def index(places):
    def apply(folder):
        names = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        data = {"weight_map": dict.fromkeys(names, "a.safetensors") | places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(data))

    return apply


LAYER = "backbone.layers.1.mixer."
DAMAGE = {
    "no folder": (shutil.rmtree, "want a checkpoint folder with config.json, found none"),
    "no config": (no_file("config.json"), "want a checkpoint folder with config.json"),
    "no weights": (no_file("model.safetensors"), "want model.safetensors or .* found none"),
    "pickle": (pickled, "only pytorch_model.bin, which is never read; save it again as safe"),
    "truncated weights": (lambda f: os.truncate(f / "model.safetensors", 9000), "truncated"),
    "no header": (lambda f: os.truncate(f / "model.safetensors", 3), "truncated"),
    "truncated config": (lambda f: os.truncate(f / "config.json", 40), "not JSON .* cut off"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "want a JSON object, got"),
    "no kind": (config(model_type=None), "want a model_type, got None"),
    "unknown kind": (config(model_type="mambaa"), "unknown model_type 'mambaa'. Did you mean 'ma"),
    "missing tensor": (weights(lambda t: t.pop(LAYER + "D")), f"the tensor {LAYER}D is missing"),
    "extra tensor": (
        weights(lambda t: t.update({"adapter.a": torch.ones(2), "adapter.b": torch.ones(2)})),
        "the tensor adapter.a and 1 more would be left unused",
    ),
    "more layers": (config(num_hidden_layers=1), f"{LAYER[:18]}.* would be left unused"),
    "fewer layers": (config(num_hidden_layers=3), r"the tensor backbone\.layers\.2.* is missing"),
    "wrong size": (
        weights(lambda t: t.update({LAYER + "D": torch.ones(5)})),
        rf"{LAYER}D: of size \(5,\), which does not become the \(96,\) that config.json asks",
    ),
    "another rank": (
        weights(lambda t: t.update({LAYER + "conv1d.weight": torch.ones(96, 3, 2, 2)})),
        r"conv1d.weight: of size .* does not become",
    ),
    "not a number": (weights(lambda t: t[LAYER + "D"].fill_(torch.nan)), "D holds NaN"),
    "whole numbers": (
        weights(lambda t: t.update({LAYER + "D": torch.ones(96, dtype=torch.int8)})),
        "of type I8; only floating point weights",
    ),
    "another config": (config(hidden_size=64), "does not become the"),
    "another kind": (config(model_type="mamba2"), "config.json: want num_heads a whole number"),
    "a word for a size": (config(state_size="4"), "state_size a whole number from 1 .*got '4'"),
    "a size too large": (config(vocab_size=1 << 40), "vocab_size a whole number from 1"),
    "a size that needs memory": (config(hidden_size=1 << 24), "does not become the"),
    "too many layers": (config(num_hidden_layers=5000), "want 1 to 1024 layers, got 5000"),
    "a flag": (config(use_bias="no"), "want use_bias true or false, got 'no'"),
    "activation": (config(hidden_act="gelu"), "hidden_act 'gelu' is not imported, only 'silu'"),
    "quantised": (config(quantization_config={"bits": 4}), "quantization_config .* not imported"),
    "end of text": (config(eos_token_id=99), "want eos_token_id from 0 to 36, got 99"),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "not a tokenizer"),
    "index without shard": (index({LAYER + "D": "b.safetensors"}), "names this shard, it is not"),
    "index of less": (index({"x": "a.safetensors"}), "x: model.safetensors.index.json names it"),
    "index of elsewhere": (index({"x": "../a.safetensors"}), "'../a.safetensors' is not a name"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(damage, message, copy, capsys):
    damage(copy)
    before = sorted(copy.parent.rglob("*"))
    assert main(["import", str(copy), "--out", str(copy.parent / "out/model")]) == 2
    out, err = capsys.readouterr()
    assert re.search(message, err)
    assert err.startswith("stepscan: ")
    assert (err.count("\n"), out) == (1, "")
    assert len(err) < 600
    assert sorted(copy.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not impo"),
        ({"rope_parameters": LLAMA3 | {"factor": "8"}}, "rope_parameters: want factor a number"),
        ({"mlp_bias": 1}, "want mlp_bias true or false, got 1"),
        ({"rope_parameters": {"rope_theta": 1e9}}, "want rope_theta a number up to 16,777,216"),
        ({"intermediate_size": 47}, "want intermediate_size a multiple of 8, got 47"),
        ({"num_key_value_heads": 3}, "key_value_heads=3 must divide heads=4"),
        ({"num_attention_heads": 5, "head_dim": None}, "must divide hidden_size"),
    ],
)
def test_llamas_that_are_not_imported(change, message, tmp_path):
    make("llama", tmp_path)
    config(**change)(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path)


def test_a_folder_that_is_there_is_left_alone(saved, tmp_path, capsys):
    assert main(["import", str(saved), "--out", str(tmp_path)]) == 2
    assert "is there already; choose another --out" in capsys.readouterr().err
    assert main(["import", str(saved)]) == 2
    assert "want --out, the model folder to make" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_people_and_programs_are_told(saved, tmp_path, capsys):
    assert main(["import", str(saved), "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"mamba: 2 mamba  width 32  [\d,]+ parameters", out)
    assert "next        stepscan generate" in out
    assert main(["import", str(saved), "--out", str(tmp_path / "b"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model_type"], facts["layers"]) == ("mamba", {"mamba": 2})
