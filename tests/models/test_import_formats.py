"""Checkpoints of other libraries: the same logits, whole, in pieces, from a state; and damage."""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from stepscan.apps.checkpoint import import_checkpoint
from stepscan.apps.model import Model
from stepscan.cli import main
from stepscan.models.imports import FORMATS, CheckpointError, read_checkpoint

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip(
    "transformers", reason="wants transformers: pip install 'stepscan[hf]'"
)

VOCAB, WIDTH = 37, 32
TINY = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "eos_token_id": None}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
MAMBA2 = {"num_heads": 8, "head_dim": 8, "state_size": 8, "chunk_size": 16}
XLSTM = {"num_heads": 4, "chunk_size": 16, "autocast_kernel_dtype": "float32"}
QWEN = {
    **HEADS, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 6, "linear_value_head_dim": 4, "full_attention_interval": 2,
}  # fmt: skip
SPARSE = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 5}
CASES = {  # the names of the classes begin with the first word
    "llama": ("Llama", HEADS),
    "llama 3.1": ("Llama", {**HEADS, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama with all": (
        "Llama",
        {**HEADS, "rope_parameters": LINEAR, "attention_bias": True, "head_dim": 12},
    ),
    "mamba": ("Mamba", {"state_size": 4}),
    "mamba with all": (
        "Mamba",
        {"state_size": 5, "expand": 3, "conv_kernel": 3, "time_step_rank": 7, "use_bias": True,
         "use_conv_bias": False, "tie_word_embeddings": False},
    ),
    "mamba2": ("Mamba2", {**MAMBA2, "n_groups": 2}),
    "mamba2 with all": (
        "Mamba2",
        {**MAMBA2, "n_groups": 1, "time_step_limit": (0.01, 0.3), "conv_kernel": 2,
         "use_bias": True, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-2},
    ),
    "falcon_mamba": ("FalconMamba", {"state_size": 4, "mixer_rms_eps": 1e-2}),
    "recurrent_gemma": ("RecurrentGemma", {**HEADS, "num_hidden_layers": 4}),
    "recurrent_gemma with all": (
        "RecurrentGemma",
        {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 80,
         "lru_width": 48, "attention_window_size": 7, "conv1d_width": 3, "logits_soft_cap": 3.0,
         "block_types": ["attention", "recurrent"], "attention_bias": True,
         "rope_parameters": {"rope_theta": 50.0, "partial_rotary_factor": 1.0},
         "rms_norm_eps": 1e-2, "tie_word_embeddings": False},
    ),
    "rwkv": ("Rwkv", {}),
    "rwkv with all": (
        "Rwkv",
        {"attention_hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
         "rescale_every": 2},
    ),
    "xlstm": ("xLSTM", XLSTM),
    "xlstm with all": (
        "xLSTM",
        {**XLSTM, "num_heads": 2, "qk_dim_factor": 0.75, "v_dim_factor": 1.5, "norm_eps": 1e-3,
         "gate_soft_cap": 2.0, "output_logit_soft_cap": 1.5,
         "ffn_proj_factor": 1.6, "ffn_round_up_to_multiple_of": 8},
    ),
    "qwen3_5_text": ("Qwen3_5Text", QWEN),
    "qwen3_next": ("Qwen3Next", {**QWEN, **SPARSE, "num_experts_per_tok": 2}),
    "qwen3_next without experts": (
        "Qwen3Next",
        {**QWEN, "num_experts": 0, "linear_conv_kernel_dim": 3, "rms_norm_eps": 1e-2,
         "layer_types": ["full_attention", "linear_attention"], "tie_word_embeddings": True,
         "rope_parameters": {"rope_theta": 50.0, "partial_rotary_factor": 0.5}},
    ),
    "qwen3_next with plain weights of experts": (
        "Qwen3Next",
        {**QWEN, **SPARSE, "num_experts_per_tok": 3, "norm_topk_prob": False},
    ),
}  # fmt: skip


def make(case, folder, **more):
    """A small model whose every weight matters, saved as its library saves it."""
    name, options = CASES[case]
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**TINY | options)
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder, **more)
    return model


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """A model of the other library, and its checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return make(request.param, folder), folder


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(VOCAB, (2, 50), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mamba")
    make("mamba with all", folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "mamba")
    return tmp_path / "mamba"


@torch.no_grad()
def logits_of(model, tokens):
    """Of the whole sequence, without the other library's cache."""
    return model(tokens, use_cache=False).logits


def assert_equal(ours, theirs):
    assert theirs.std() > 0.1  # logits that say something
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_every_format_has_a_case():
    kinds = {getattr(transformers, f"{name}Config").model_type for name, _ in CASES.values()}
    assert kinds == set(FORMATS)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[50], [1, 0, 20, 29], [3] + [1] * 47], ids=str)
def test_logits_are_equal_whole_and_in_pieces(pair, tokens, cuts):
    theirs, folder = pair
    model, _ = read_checkpoint(folder)
    state, said = None, []
    for piece in tokens.split(cuts, 1):
        logits, state = model(piece, state)
        said.append(logits)
    assert_equal(torch.cat(said, 1), logits_of(theirs, tokens))


@torch.no_grad()
def test_the_folder_writes_what_the_other_library_would(pair, tmp_path):
    theirs, folder = pair
    import_checkpoint(folder, tmp_path / "model")
    model = Model.load(tmp_path / "model")
    ids = [5, 7, 11]
    while len(ids) < 33:  # past the length from which new tokens take the compiled step
        ids.append(int(logits_of(theirs, torch.tensor([ids]))[0, -1].argmax()))
    text = model.generate("5 7 11", length=30, temperature=0)
    assert [int(word) for word in text.split()] == ids[3:]
    logits, state = model.stream("5 7 11")
    more, _ = model.stream("2 30", state)
    assert_equal(torch.cat([logits, more]), logits_of(theirs, torch.tensor([[5, 7, 11, 2, 30]]))[0])


def test_shards_and_half_precision(tmp_path, tokens):
    theirs = make("llama", tmp_path / "whole")
    make("llama", tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, shards = (read_checkpoint(tmp_path / name).model for name in ("whole", "shards"))
    assert torch.equal(whole(tokens)[0], shards(tokens)[0])
    rounded(tmp_path / "whole" / "model.safetensors")
    half, _ = read_checkpoint(tmp_path / "whole")
    assert half.head.map.weight.dtype == torch.float32
    for weight in theirs.parameters():
        weight.data = weight.data.bfloat16().float()
    assert_equal(half(tokens)[0].detach(), logits_of(theirs, tokens))


def rounded(path):
    save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path)


def test_old_ways_of_writing_a_config(tmp_path, tokens):
    theirs = make("llama 3.1", tmp_path)
    edit(tmp_path, lambda c: c.pop("rope_parameters"))
    edit(tmp_path, lambda c: c.update(rope_theta=500.0, rope_scaling=LLAMA3))
    path = tmp_path / "model.safetensors"
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in (0, 1)}
    copies = {"lm_head.weight": load_file(path)["model.embed_tokens.weight"].clone()}
    save_file(load_file(path) | buffers | copies, path)
    model, _ = read_checkpoint(tmp_path)
    assert_equal(model(tokens)[0].detach(), logits_of(theirs, tokens))
    copies["lm_head.weight"][0, 0] += 1
    save_file(load_file(path) | copies, path)
    with pytest.raises(CheckpointError, match=r"ties lm_head\.weight to .* the two differ"):
        read_checkpoint(tmp_path)


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


def edit(folder, change):
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def config(**changes):
    return lambda folder: edit(folder, lambda data: data.update(changes))


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
        ({"mlp_bias": True}, "mlp_bias True is not imported, only False"),
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
