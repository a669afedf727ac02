"""The head of models that read items as text: a direction to look for items in.

    item_t     = h_t / |h_t|                                  a user after t, or an item at its end
    score      = item_t . item(sentence of j) / temperature   of a user and item j
    words_t    = E norm(gelu(W h_t))                          logits of the word hidden at t

The same weights read a history and a single item, so an item that nobody has taken has a place too.
Source: Li et al. 2023, arXiv:2305.13731 (Recformer), cosine scores with a temperature of 0.05; the
map to words is that of masked language models (Devlin et al. 2018, arXiv:1810.04805).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.norm import norm
from stepscan.layers.projection import Linear
from stepscan.models.heads.base import HeadConfig, Logits
from stepscan.models.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class NextSentence(HeadConfig):
    """What a history or an item says as a whole, see `SentenceOutput`."""

    name: ClassVar[str] = "next_sentence"

    words: int
    """Number of words V."""
    temperature: float = 0.05
    """What cosines are divided by."""

    def __post_init__(self) -> None:
        """Reject what no model can say."""
        if self.words < 1:
            raise ValueError(f"head: want words >= 1, got {self.words}")
        if not self.temperature > 0:
            raise ValueError(f"head: want temperature above 0, got {self.temperature}")

    @property
    def vocabulary(self) -> int:
        """All V."""
        return self.words

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """Directions, and a map to words on demand."""
        return SentenceHead(width, self, table)


class SentenceOutput(NamedTuple):
    """What `NextSentence` says after every step."""

    item: Float[Tensor, "B T D"]
    """Of length 1."""
    hidden: Float[Tensor, "B T D"]
    """What `SentenceHead.words` reads."""


class SentenceHead(nn.Module):
    """See the module docstring."""

    def __init__(self, width: int, config: NextSentence, table: nn.Embedding | None) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.dense = Linear(width, width)
        nn.init.normal_(self.dense.weight, std=width**-0.5)
        nn.init.zeros_(self.dense.bias)
        self.norm = norm("layer", width, None)
        self.logits = Logits(width, config.words, table)

    def forward(self, x: Float[Tensor, "B T D"], inputs: Inputs) -> SentenceOutput:
        """Directions and what words are read from."""
        return SentenceOutput(F.normalize(x, dim=-1), x)

    def words(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits of hidden words."""
        return self.logits(self.norm(F.gelu(self.dense(hidden)))[None], Inputs())[0]

    def scores(
        self, users: Float[Tensor, "N D"], items: Float[Tensor, "V D"]
    ) -> Float[Tensor, "N V"]:
        """Of every user and item."""
        return users @ items.T / self.temperature
