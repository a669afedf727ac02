"""Text: documents as bytes, or as tokens of a byte-level BPE learned here from the training part.

A document of tokens t1 .. tn becomes the inputs `boundary t1 .. tn`, asked for `t1 .. tn boundary`.
Whole documents are held out, drawn without looking at them. Fewer than TAIL documents are cut in
time instead: their last parts are held out, after up to CONTEXT bytes that are read, not asked for.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.data.base import DataError, DataOptions, Dataset, Packed, Schema
from stepscan.names import lookup

TAIL = 10
CONTEXT = 1024
HELD_OUT = (0.05, 0.1)  # valid, test
TEXT_FILES = (".txt", ".md", ".rst", ".py", ".tex", ".html", ".c", ".cpp", ".h", ".js", ".log")


@dataclass(frozen=True, kw_only=True)
class TextSchema(Schema):
    """How text becomes tokens and back."""

    kind: ClassVar[str] = "text"

    tokenizer: str = "byte"
    """byte, or bpe."""
    bpe: str | None = None
    """The learned tokenizer, as the JSON of the `tokenizers` library."""
    lengths: tuple[int, ...] = (1,) * 256 + (0,)
    """Bytes of each token: nats / ln 2 / bytes are bits per byte. The last is the boundary."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """One column."""
        return (len(self.lengths),)

    @property
    def reals(self) -> int:
        """None."""
        return 0

    @property
    def boundary(self) -> int:
        """The token before and after every document."""
        return len(self.lengths) - 1

    def encode(self, text: str | bytes) -> Int[np.ndarray, " N"]:
        """The tokens of a text, without boundaries."""
        data = text.encode() if isinstance(text, str) else text
        if self.bpe is None:
            return np.frombuffer(data, np.uint8).astype(np.int16)
        return np.array(_load(self.bpe).encode(_utf8(data, "text")).ids, np.int32)

    def decode(self, tokens: Sequence[int] | Int[Tensor, " N"]) -> bytes:
        """The bytes of these tokens; boundaries are left out."""
        ids = [i for i in map(int, tokens) if i != self.boundary]
        if self.bpe is None:
            return bytes(ids)
        tokenizer = _load(self.bpe)
        values = _byte_values()
        return b"".join(bytes(values[c] for c in tokenizer.id_to_token(i)) for i in ids)

    @property
    def ends(self) -> tuple[int, ...]:
        """What ends a document."""
        return (self.boundary,)

    def begin(self, text: str | bytes) -> list[int]:
        """The tokens of a document begun."""
        return [self.boundary, *self.encode(text).tolist()]

    def continuation(self, begun: Sequence[int], drawn: Sequence[int]) -> str:
        """What these tokens say after those."""
        return self.decode(drawn).decode(errors="replace")

    def prompt(self, text: str | bytes) -> Packed:
        """One document begun, nothing asked for."""
        ids = torch.from_numpy(np.append([self.boundary], self.encode(text)))
        return Packed(torch.arange(len(ids)) == 0, tokens=ids[:, None])

    def bytes_asked(self, packed: Packed) -> int:
        """The bytes of all targets of a part: what its total loss is to be divided by."""
        target = packed.targets_at(torch.arange(len(packed)))["token"]
        return int(torch.tensor(self.lengths)[target[target >= 0]].sum())


def text_dataset(
    documents: Sequence[bytes],
    options: DataOptions,
    *,
    name: str,
    names: Sequence[str] = (),
    unit: str = "documents",
) -> Dataset:
    """Split, tokenise and pack these documents."""
    findings = []
    unique = dict.fromkeys(document for document in documents if document)
    if len(unique) < len(documents):
        findings.append(f"{len(documents) - len(unique)} empty or repeated {unit} left out")
    kept = list(unique)
    total = sum(map(len, kept))
    held = (
        HELD_OUT[0] if options.valid is None else options.valid,
        HELD_OUT[1] if options.test is None else options.test,
    )
    _check_fractions(held, name)
    if total * min(held) < 1 or total < 2 * TAIL:
        raise DataError(f"{name}: want at least a few hundred bytes of text, got {total}")
    cuts = _cut_tails(kept, held) if len(kept) < TAIL else _deal(kept, held)
    schema = _learn(cuts["train"], options, name, dict(zip(documents, names, strict=False)))
    parts = {part: _pack(pieces, schema) for part, pieces in cuts.items()}
    sizes = {part: sum(p.asked for p in pieces) for part, pieces in cuts.items()}
    how = "the tail of the text" if len(kept) < TAIL else f"whole {unit}"
    said = (
        f"{name}   text  {len(kept):,} {unit if len(kept) > 1 else unit[:-1]}  {total:,} bytes",
        f"tokens      {'bytes' if schema.bpe is None else 'BPE, learned from the training part'}"
        f"  vocabulary {schema.tokens[0]:,} with the boundary between documents",
        f"held out    {how}: "
        + "  ".join(f"{part} {size:,} bytes" for part, size in sizes.items()),
    )
    return Dataset(name=name, schema=schema, parts=parts, said=said, findings=tuple(findings))


def read_documents(path: Path, options: DataOptions) -> tuple[list[bytes], list[str], str]:
    """The documents of a file or a folder, their names, and what a document is called."""
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in TEXT_FILES and f.is_file())
        if not files:
            raise DataError(f"{path}: no text files in this folder; want {' '.join(TEXT_FILES)}")
        return [f.read_bytes() for f in files], [str(f) for f in files], "files"
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        documents = list(_read_jsonl(path, options.text))
        names = [f"{path}: row {row:,}" for row in range(1, len(documents) + 1)]
        return documents, names, "documents"
    return [path.read_bytes()], [str(path)], "documents"


def _read_jsonl(path: Path, field: str | None) -> Iterator[bytes]:
    for row, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: row {row:,} is not JSON ({error})") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{path}: row {row:,}: want an object with a field of text, got {record!r:.40}"
            )
        key = field or "text"
        if not isinstance(record.get(key), str):
            known = ", ".join(map(str, record))
            raise DataError(
                f'{path}: row {row:,}: no text in the field "{key}"; name the field with --text. '
                f"Fields here: {known}"
            )
        yield record[key].encode(errors="surrogatepass")


@dataclass(frozen=True)
class _Piece:
    """A stretch of a document: bytes only read, then bytes asked for."""

    data: bytes
    context: int = 0
    begins: bool = True
    ends: bool = True

    @property
    def asked(self) -> int:
        return len(self.data) - self.context


def _deal(documents: list[bytes], held: tuple[float, float]) -> dict[str, list[_Piece]]:
    """Whole documents: the last of a fixed shuffle until enough bytes are held out."""
    total = sum(map(len, documents))
    dealt: dict[str, list[_Piece]] = {"train": [], "valid": [], "test": []}
    wanted = {"test": held[1] * total, "valid": held[0] * total}
    order = np.random.default_rng(0).permutation(len(documents)).tolist()
    for part, size in wanted.items():
        while len(order) > 1 and sum(p.asked for p in dealt[part]) < size:
            dealt[part].append(_Piece(documents[order.pop()]))
    dealt["train"] = [_Piece(documents[i]) for i in order]
    return dealt


def _cut_tails(documents: list[bytes], held: tuple[float, float]) -> dict[str, list[_Piece]]:
    dealt: dict[str, list[_Piece]] = {"train": [], "valid": [], "test": []}
    for data in documents:
        valid = _letter(data, int(len(data) * (1 - sum(held))))
        test = _letter(data, int(len(data) * (1 - held[1])))
        dealt["train"].append(_Piece(data[:valid], ends=False))
        for part, begin, end in (("valid", valid, test), ("test", test, len(data))):
            first = _letter(data, max(0, begin - CONTEXT))
            dealt[part].append(
                _Piece(data[first:end], begin - first, begins=not first, ends=end == len(data))
            )
    return dealt


def _letter(data: bytes, cut: int) -> int:
    """The nearest cut at or before this one that leaves UTF-8 letters whole."""
    for back in range(min(cut, 3) + 1):
        if data[cut - back] & 0xC0 != 0x80:
            return cut - back
    return cut


def _pack(pieces: list[_Piece], schema: TextSchema) -> Packed:
    """Lay the pieces end to end: each is asked for the token after every one of its inputs."""
    inputs, targets, starts = [], [], []
    edge = np.array([schema.boundary], np.int32)
    for piece in pieces:
        context = schema.encode(piece.data[: piece.context])
        asked = schema.encode(piece.data[piece.context :])
        ids = np.concatenate([edge] * piece.begins + [context, asked])
        after = edge if piece.ends else np.array([-1], np.int32)
        target = np.append(ids[1:], after)
        target[: max(0, len(context) + piece.begins - 1)] = -1
        inputs.append(ids)
        targets.append(target)
        starts.append(np.arange(len(ids)) == 0)
    small = np.int16 if schema.tokens[0] <= np.iinfo(np.int16).max else np.int32
    return Packed(
        torch.from_numpy(np.concatenate(starts)),
        tokens=torch.from_numpy(np.concatenate(inputs).astype(small))[:, None],
        targets={"token": torch.from_numpy(np.concatenate(targets).astype(small))},
    )


def _learn(
    pieces: list[_Piece], options: DataOptions, name: str, sources: dict[bytes, str]
) -> TextSchema:
    kind = lookup({"byte": "byte", "bpe": "bpe"}, options.tokenizer, kind="tokenizer")
    if kind == "byte":
        return TextSchema()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    if options.vocabulary <= 257:
        raise DataError(f"{name}: want a vocabulary above 257 for bpe, got {options.vocabulary}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (_utf8(piece.data, sources.get(piece.data, name)) for piece in pieces)
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    lengths = tuple(len(token) for token, _ in vocabulary)
    return TextSchema(tokenizer="bpe", bpe=tokenizer.to_str(), lengths=(*lengths, 0))


def _utf8(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: byte {error.start:,} is not UTF-8; bpe needs UTF-8 text, "
            "the byte tokenizer takes anything: --tokenizer byte"
        ) from None


@lru_cache(maxsize=8)
def _load(saved: str) -> Any:
    from tokenizers import Tokenizer  # noqa: PLC0415

    try:
        return Tokenizer.from_str(saved)
    except Exception as error:  # what the library raises has no narrower type
        raise DataError(f"schema: not a tokenizer ({error})") from None


@lru_cache(maxsize=1)
def _byte_values() -> dict[str, int]:
    """The byte of each letter of the byte-level alphabet: printable ones stand for themselves."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _check_fractions(held: tuple[float, float], name: str) -> None:
    if not (all(0 < part < 1 for part in held) and sum(held) < 1):
        raise DataError(f"{name}: want fractions valid + test below 1, got {held[0]} + {held[1]}")
