"""Checkpoints of another library: the same logits, whole, in pieces and from a state."""

import pytest
import torch
from checkpoints import CASES, LLAMA3, VOCAB, edit, make, transformers
from safetensors.torch import load_file, save_file

from stepscan.apps.checkpoint import import_checkpoint
from stepscan.apps.model import Model
from stepscan.models.imports import FORMATS, CheckpointError, read_checkpoint


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """A model of the other library, and its checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return make(request.param, folder), folder


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(VOCAB, (2, 50), generator=torch.Generator().manual_seed(1))


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
@pytest.mark.parametrize(
    "cuts", [[50], [1, 0, 20, 29], [3] + [1] * 47], ids=["whole", "pieces", "token by token"]
)
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
