import json

import numpy as np
import pytest
import torch

from stepscan.data import DataError, DataOptions, open_dataset, read_schema
from stepscan.data.text import CONTEXT, text_dataset

WORDS = ["der", "die", "das", "Straße", "und", "naïve", "oder", "nicht", "\n", "x = 1"]


def documents(count, seed=0, words=60):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, words)).encode() for _ in range(count)]


def read_back(dataset, part):
    """The documents of a part, from its inputs alone; and its targets."""
    packed = dataset.parts[part]
    tokens = packed.tokens[:, 0].long()
    target = packed.targets_at(torch.arange(len(packed)))["token"]
    pieces = zip(packed.begins.tolist(), packed.lengths.tolist(), strict=True)
    return [(tokens[b : b + n].tolist(), target[b : b + n].tolist()) for b, n in pieces]


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_every_token_of_every_document_is_asked_for_once(tokenizer):
    kept = documents(40)
    dataset = text_dataset(kept, DataOptions(tokenizer=tokenizer, vocabulary=300), name="t")
    schema = dataset.schema
    seen = []
    for part, packed in dataset.parts.items():
        for inputs, targets in read_back(dataset, part):
            assert inputs[0] == schema.boundary == targets[-1]
            assert inputs[1:] == targets[:-1]
            seen.append(schema.decode(inputs))
        asked = packed.targets_at(torch.arange(len(packed)))["token"]
        total = sum(len(schema.decode(inputs)) for inputs, _ in read_back(dataset, part))
        assert schema.bytes_asked(packed) == total
        assert (asked >= 0).all()
    assert sorted(seen) == sorted(kept)
    assert max(schema.lengths) > (1 if tokenizer == "bpe" else 0)
    assert read_schema(json.loads(json.dumps(schema.to_dict()))) == schema


def test_a_single_text_is_cut_in_time_with_context():
    data = np.random.default_rng(0).integers(0, 256, 40_000, np.uint8).tobytes()
    dataset = text_dataset([data], DataOptions(), name="t")
    asked = b""
    for part in ("train", "valid", "test"):
        ((inputs, targets),) = read_back(dataset, part)
        asked += bytes(t for t in targets if 0 <= t < 256)
        if part != "train":
            assert targets[: CONTEXT - 1] == [-1] * (CONTEXT - 1)
            assert targets[CONTEXT - 1] == inputs[CONTEXT]
    assert asked == data
    assert read_back(dataset, "train")[0][1][-1] == -1, "train does not tell how valid begins"
    assert read_back(dataset, "test")[0][1][-1] == 256


def test_cuts_leave_letters_whole():
    dataset = text_dataset(["ß".encode() * 4001], DataOptions(tokenizer="bpe"), name="t")
    assert sum(dataset.schema.bytes_asked(p) for p in dataset.parts.values()) == 8002


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
@pytest.mark.parametrize("count", [1, 40])
def test_held_out_text_changes_nothing_learned(tokenizer, count):
    options = DataOptions(tokenizer=tokenizer, vocabulary=300)
    kept = documents(count, words=4000 // count)
    one = text_dataset(kept, options, name="t")
    if count == 1:
        other = [kept[0][:-200] + b"#" * 200]
    else:
        held = {
            bytes(one.schema.decode(i)) for p in ("valid", "test") for i, _ in read_back(one, p)
        }
        other = [
            bytes(reversed(d.decode().encode("ascii", "replace"))) if d in held else d for d in kept
        ]
        other = [o[: len(d)].ljust(len(d), b".") for o, d in zip(other, kept, strict=True)]
    two = text_dataset(other, options, name="t")
    assert one.schema == two.schema
    assert one.parts["train"].tokens.equal(two.parts["train"].tokens)
    assert not one.parts["test"].tokens.equal(two.parts["test"].tokens)


def test_repeated_and_empty_documents_are_left_out_and_said():
    kept = documents(20)
    dataset = text_dataset([*kept, b"", kept[3]], DataOptions(), name="t", unit="files")
    assert "2 empty or repeated files left out" in dataset.findings
    assert sum(len(p.begins) for p in dataset.parts.values()) == 20


def test_prompts_begin_a_document_and_any_bytes_survive():
    schema = text_dataset(documents(20), DataOptions(), name="t").schema
    every = bytes(range(256))
    prompt = schema.prompt(every)
    assert prompt.tokens[0] == schema.boundary
    assert schema.decode(prompt.tokens[:, 0]) == every


def test_files_folders_and_jsonl(tmp_path):
    kept = documents(12)
    for i, document in enumerate(kept):
        (tmp_path / f"{i}.txt").write_bytes(document)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"body": d.decode()}) for d in kept))
    folder, lines = open_dataset(tmp_path), open_dataset(rows, DataOptions(text="body"))
    for dataset in (folder, lines):
        total = sum(dataset.schema.bytes_asked(p) for p in dataset.parts.values())
        assert total == sum(map(len, kept))
    with pytest.raises(DataError, match=r'rows.jsonl: row 1: no text in the field "text".*body'):
        open_dataset(rows)


@pytest.mark.plain
def test_errors_say_what_to_fix(tmp_path):
    with pytest.raises(DataError, match=r"byte 0 is not UTF-8.*--tokenizer byte"):
        text_dataset([b"\xff" * 1000], DataOptions(tokenizer="bpe"), name="t")
    with pytest.raises(DataError, match="at least a few hundred bytes of text, got 3"):
        text_dataset([b"abc"], DataOptions(), name="t")
    with pytest.raises(ValueError, match="Did you mean 'byte'"):
        text_dataset(documents(20), DataOptions(tokenizer="bytes"), name="t")
    with pytest.raises(DataError, match="vocabulary above 257 for bpe, got 100"):
        text_dataset(documents(20), DataOptions(tokenizer="bpe", vocabulary=100), name="t")
    with pytest.raises(DataError, match="no text files in this folder"):
        open_dataset(tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\nnope\n')
    with pytest.raises(DataError, match="row 2 is not JSON"):
        open_dataset(bad)
