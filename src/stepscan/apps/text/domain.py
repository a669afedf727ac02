"""Text: language models over bytes or locally learned tokens, judged in bits per byte."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch

from stepscan.apps.baselines.ngram import NGram
from stepscan.apps.domain import Domain, Metric, Recipe, Scores
from stepscan.data.text import TextSchema
from stepscan.data.tokens import TokenSchema
from stepscan.data.views import View
from stepscan.generate import Sampling, decode
from stepscan.models import NextToken, SequenceModel
from stepscan.models.heads import HeadConfig
from stepscan.train.evaluate import evaluate

ORDER = 5
PROMPT, SAMPLE = 120, 400  # bytes of the examples


class Text(Domain):
    """Documents of bytes."""

    kind: ClassVar[str] = "text"
    metrics: tuple[Metric, ...] = (
        Metric(
            "bits/byte",
            "lower",
            "Cross entropy of the held-out text in bits, summed over all its tokens (and the end "
            "of each document), divided by its bytes. It does not depend on the tokenizer.",
        ),
    )
    recipe: Recipe = Recipe(rows=4, length=256, learning_rate=3e-3)

    @property
    def schema(self) -> TextSchema:
        """The tokenizer."""
        assert isinstance(self.dataset.schema, TextSchema)
        return self.dataset.schema

    @property
    def head(self) -> HeadConfig:
        """The next token."""
        return NextToken(vocab=self.schema.tokens[0])

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """Bits per byte."""
        packed = self.part(part, most)
        nats = evaluate(model, packed, rows=16, length=self.reach, slots=self.reach)["token"]
        asked = packed.targets_at(torch.arange(len(packed)))["token"] >= 0
        total = nats * int(asked.sum())
        return {"bits/byte": total / math.log(2) / self.schema.bytes_asked(packed)}

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """An n-gram model with back-off, counted on the same training part."""
        train, test = self.dataset.parts["train"], self.dataset.parts["test"]
        assert train.tokens is not None
        assert test.tokens is not None
        model = NGram(_ids(train.tokens), self.schema.tokens[0], ORDER)
        # The token after every step is its target; a document's last is the next one's boundary.
        after = np.append(_ids(test.tokens), self.schema.boundary)
        nats = -model.log_probabilities(after)[1:]
        packed = self.part("test", most)
        at = packed.at if isinstance(packed, View) else torch.arange(len(packed))
        asked = packed.targets_at(torch.arange(len(packed)))["token"] >= 0
        total = nats[at[asked].numpy()].sum() / math.log(2)
        yield (
            f"{ORDER}-gram, back-off",
            {"bits/byte": float(total / self.schema.bytes_asked(packed))},
        )

    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """What each model writes after the same held-out beginning."""
        test = self.dataset.parts["test"]
        assert test.tokens is not None
        first = test.tokens[: int(test.lengths[0]), 0].tolist()
        prompt = self.schema.decode(first)[:PROMPT].decode(errors="ignore")
        samples = [
            {"from": name, "text": generate(model, self.schema, prompt, length=SAMPLE, seed=0)}
            for name, model in models.items()
        ]
        title = "Text written after a held-out beginning (temperature 0.8)"
        return [{"type": "text", "title": title, "prompt": prompt, "samples": samples}]


def generate(
    model: SequenceModel,
    schema: TextSchema | TokenSchema,
    prompt: str,
    *,
    length: int = 400,
    sampling: Sampling = Sampling(temperature=0.8),  # noqa: B008  (frozen)
    stop: str | None = None,
    seed: int = 0,
    dtype: str = "fp32",
) -> str:
    """Text that goes on after the prompt.

    Args:
        model: A model of next tokens.
        schema: The tokenizer that the model was trained with.
        prompt: May be empty: then a new document begins.
        length: Tokens at the most.
        sampling: How to choose each.
        stop: Ends the text where it appears (and is left out); so does the end of a document.
        seed: The same seed gives the same text.
        dtype: What the weights are rounded to for new tokens: fp32, bf16 or int8.
    """
    if length < 1:
        raise ValueError(f"generate: want length >= 1, got {length}")
    ids = schema.begin(prompt)
    rng = torch.Generator().manual_seed(seed)
    prompt_ids = torch.tensor([ids])
    steps = decode(model.eval(), prompt_ids, sampling=sampling, rng=rng, dtype=dtype)
    drawn: list[int] = []
    for token in islice(steps, length):
        if int(token) in schema.ends:
            break
        drawn.append(int(token))
        if stop and stop in (text := schema.continuation(ids, drawn)):
            return text[: text.index(stop)]
    return schema.continuation(ids, drawn)


def _ids(tokens: torch.Tensor) -> np.ndarray:
    return tokens[:, 0].numpy().astype(np.int64)
