"""How a model learns to read items: which item came next, and which words were hidden.

    contrast   cross entropy of user_t . item(j) / temperature over the items j of the batch,
               the one that came next against all others                        nats
    words      cross entropy of the words that were hidden                      nats

Items are read anew by the same weights in every step. Of the words of the histories 15 % are asked
for: 8 in 10 of them are hidden, 1 in 10 is another word, 1 in 10 stays. Items are read without
holes, in half of the steps with their attributes in another order and some of them missing.
Source: Li et al. 2023, arXiv:2305.13731 (Recformer), section 3.4: item-item contrast with the
others of the batch as negatives, plus masked language modelling. Deviations: both are learned in
one pass and from the start, and every item of a history is asked for, not only the last one; a
causal mixer sees only what stands before a hidden word; orders and holes are ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.data.base import Batch
from stepscan.data.item_texts import CLOSE, MASK, PADDING, SPECIAL
from stepscan.models import Inputs, SequenceModel
from stepscan.models.heads.next_sentence import SentenceHead
from stepscan.train.objectives import Loss, Sum

HIDDEN = 0.15
WORDS = 0.1
"""Weight of the hidden words."""
ALONE = 64
"""Items read side by side."""


class Contrast:
    """An objective of `Trainer`: `(model, batch, state) -> (loss, state)`."""

    def __init__(
        self,
        sentences: Int[Tensor, "V L 2"],
        others: Sequence[Int[Tensor, "V M 2"]] = (),
        words: float = WORDS,
    ) -> None:
        self.sentences, self.others = sentences, tuple(others)
        self.weight = words

    def __call__(self, model: SequenceModel, batch: Batch, state: Any) -> tuple[Loss, Any]:
        """One batch of histories, word by word."""
        assert batch.tokens is not None
        head = model.head
        assert isinstance(head, SentenceHead)
        tokens, hidden = hide(batch.tokens, model.config.tokens[0])
        said, state = model(Inputs(tokens), state, batch.resets)
        asked = batch.targets["token"] > 0
        wanted = batch.targets["token"][asked]
        zero = said.hidden.sum() * 0
        count = asked.sum()
        contrast = zero
        if len(wanted):
            own = batch.targets["item"][batch.targets["item"] > 0]
            candidates, place = torch.cat([wanted, own]).unique(return_inverse=True)
            sentences = self._drawn()[candidates.cpu()].to(wanted.device)
            items = read_items(model, sentences)
            scores = head.scores(said.item[asked], items)
            contrast = F.cross_entropy(scores, place[: len(wanted)], reduction="sum")
        words = zero
        if hidden.any():
            logits = head.words(said.hidden[hidden])
            words = F.cross_entropy(logits, batch.tokens[..., 0][hidden], reduction="sum")
        sums = {"token": Sum(contrast, count), "word": Sum(words, hidden.sum())}
        means = {name: total / n.clamp_min(1) for name, (total, n) in sums.items()}
        mean = means["token"] + self.weight * means["word"]
        return Loss(mean, {name: Sum(t.detach(), n) for name, (t, n) in sums.items()}), state

    def _drawn(self) -> Int[Tensor, "V L 2"]:
        """How items are told this time."""
        if not self.others or torch.rand(()) < 0.5:
            return self.sentences
        return self.others[int(torch.randint(len(self.others), ()))]


def hide(tokens: Int[Tensor, "B T 3"], words: int) -> tuple[Int[Tensor, "B T 3"], Tensor]:
    """The tokens with some words hidden, and where words are to be told."""
    text = (tokens[..., 1] != CLOSE) & (tokens[..., 1] != PADDING)
    chosen = text & (torch.rand(text.shape, device=text.device) < HIDDEN)
    how = torch.rand(text.shape, device=text.device)
    word = tokens[..., 0]
    other = torch.randint_like(word, SPECIAL, words)
    word = torch.where(chosen & (how < 0.8), MASK, word)
    word = torch.where(chosen & (how >= 0.9), other, word)
    return torch.cat([word[..., None], tokens[..., 1:]], -1), chosen


def read_items(model: SequenceModel, sentences: Int[Tensor, "V L 2"]) -> Float[Tensor, "V D"]:
    """Where each item stands, read by itself: the direction at its end."""
    lengths = (sentences[..., 1] != PADDING).sum(1)
    order = lengths.argsort()  # those of one length together: little padding is read
    found = []
    for rows in order.split(ALONE):
        cut = sentences[rows, : int(lengths[rows].max())]
        said, _ = model(Inputs(torch.cat([cut, torch.zeros_like(cut[..., :1])], -1)))
        found.append(said.item[torch.arange(len(rows), device=rows.device), lengths[rows] - 1])
    return torch.cat(found)[order.argsort()]
