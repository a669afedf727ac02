"""Passages: questions on one, two or all of many passages, found by title or by topic.

read   [filler] #3 ab cb = 7 aa  #9 xy zx xx = 2  ...  ? #9 #9      a title, words of one topic and
ask                                                        2      a fact somewhere between them

One question of three tokens at the end. Its kinds, after the abilities of the source:
    explicit single      the fact of the passage with this title
    explicit multiple    of two titles, the fact of the passage that comes later
    semantic single      the fact of the only passage on this topic
    semantic multiple    of the two passages on this topic, the fact of the later one
    global               the fact of the passage with the smallest title of all

`draw_with_spans` also marks the passages that the answer is found in.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stepscan.names import lookup
from stepscan.tasks.base import Batch, Task

KINDS = ("explicit single", "explicit multiple", "semantic single", "semantic multiple", "global")


@dataclass(frozen=True, kw_only=True)
class Passages(Task):
    """Config of the passages task."""

    name: ClassVar[str] = "passages"
    ability: ClassVar[str] = "long range"
    source: ClassVar[str] = "after M4LE, Kwan et al. 2023, arXiv:2310.19240"

    length: int = 96
    """Tokens, the question included; what passages leave over is filler in front."""
    passage: int = 10
    """Tokens of a passage."""
    kind: str = "mixed"
    """One of KINDS, or mixed: any, as the question says."""
    titles: int = 160
    """Titles."""
    topics: int = 4
    """Topics."""
    words: int = 8
    """Words of each topic."""
    values: int = 16
    """What a fact may be."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        lookup(dict.fromkeys((*KINDS, "mixed")), self.kind, kind="kind of passages")
        if self.passage < 4 or not 2 <= self.passages <= self.titles or self.topics < 2:
            raise ValueError(
                "passages: want passages of at least 4 tokens, from 2 to `titles` of them and at "
                f"least 2 topics, got {self}"
            )

    @property
    def passages(self) -> int:
        """How many fit."""
        return (self.length - 3) // self.passage

    def longer(self, factor: int) -> "Passages":
        """More passages; more titles only where there are too few."""
        length = self.length * factor
        return replace(self, length=length, titles=max(self.titles, length // self.passage))

    @property
    def starts(self) -> tuple[int, ...]:
        """First ids of titles, topics, words and kinds; values are first, fact and filler last."""
        titles = self.values
        topics = titles + self.titles
        words = topics + self.topics
        return titles, topics, words, words + self.topics * self.words

    @property
    def vocab(self) -> int:
        """Values, titles, topics, words, kinds, the mark of a fact and filler."""
        return self.starts[-1] + len(KINDS) + 2

    @property
    def answers(self) -> int:
        """Only values are asked for."""
        return self.values

    @property
    def chance(self) -> float:
        """A uniform guess among values."""
        return 1 / self.values

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        return self.draw_with_spans(n, rng)[0]

    def draw_with_spans(self, n: int, rng: torch.Generator) -> tuple[Batch, Bool[Tensor, "B T"]]:
        """Draw `n` examples; also which tokens the answer is found in."""

        def some(below: int, *shape: int) -> Tensor:
            return torch.randint(below, shape, generator=rng)

        titles, topics, words, kinds = self.starts
        P, L = self.passages, self.passage
        kind = some(len(KINDS), n, 1)
        if self.kind != "mixed":
            kind = torch.full((n, 1), KINDS.index(self.kind))
        two, semantic = (kind == 1) | (kind == 3), (kind == 2) | (kind == 3)

        title = titles + torch.rand(n, self.titles, generator=rng).argsort(1)[:, :P]
        a, b = torch.rand(n, P, generator=rng).argsort(1)[:, :2].sort(1).values.split(1, 1)
        asked_topic = some(self.topics, n, 1)
        others = (asked_topic + 1 + some(self.topics - 1, n, P)) % self.topics
        place = torch.arange(P)
        chosen = (place == a) | (place == b) & two
        topic = torch.where(chosen, asked_topic, others)
        topic = torch.where(semantic, topic, some(self.topics, n, P))
        value = some(self.values, n, P)

        body = words + topic[..., None] * self.words + some(self.words, n, P, L - 1)
        at = some(L - 2, n, P, 1)
        fact = torch.stack([torch.full_like(value, self.vocab - 2), value], 2)
        body.scatter_(2, at + torch.arange(2), fact)
        text = torch.cat([title[..., None], body], 2)

        one = torch.where(semantic, topics + asked_topic, title.gather(1, a))
        other = torch.where(kind == 1, title.gather(1, b), one)
        swap = some(2, n, 1) == 1
        one, other = torch.where(swap, other, one), torch.where(swap, one, other)
        everything = kind == len(KINDS) - 1
        one, other = (torch.where(everything, kinds + kind, x) for x in (one, other))
        where = torch.where(two, b, torch.where(everything, title.argmin(1, keepdim=True), a))

        filler = torch.full((n, self.length - 3 - P * L), self.vocab - 1)
        input = torch.cat([filler, text.flatten(1), kinds + kind, one, other], 1)
        target, asked = torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
        target[:, -1:], asked[:, -1] = value.gather(1, where), True
        spans = torch.zeros_like(asked)
        spans[:, filler.shape[1] : -3] = (chosen | everything).repeat_interleave(L, 1)
        return Batch(input, target, asked), spans

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Read the passages into a list, then look among those that the question means."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            out[-1] = self._answer(row)
        return answer

    def _answer(self, row: list[int]) -> int:
        titles, topics, words, kinds = self.starts
        read: list[dict[str, int]] = []
        *text, kind, one, other = row
        for before, token in zip([-1, *text], text, strict=False):
            if titles <= token < topics:
                read.append({"title": token})
            elif read and words <= token < kinds:
                read[-1]["topic"] = topics + (token - words) // self.words
            elif read and before == self.vocab - 2:
                read[-1]["value"] = token
        if kind != kinds + len(KINDS) - 1:
            meant = (one, other)
            read = [p for p in read if p["title"] in meant or p.get("topic") in meant]
        elif read:
            read = [min(read, key=lambda p: p["title"])]
        return read[-1].get("value", 0) if read else 0
