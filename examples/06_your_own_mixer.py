"""A mixer of your own: one recurrence, checked by the laws, then trained in a model."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from stepscan.mixers import Mixer, MixerConfig
from stepscan.models import ModelConfig, NextToken, SequenceModel
from stepscan.ops.linear_scan import linear_scan


@dataclass(frozen=True, kw_only=True)
class LeakyConfig(MixerConfig):
    """h = a h + (1 - a) W x, with one rate of forgetting for each channel."""

    name: ClassVar[str] = "leaky"
    equation: ClassVar[str] = "h = a h + (1 - a) W x_t"
    source: ClassVar[str] = "you"

    def build(self, width: int) -> "Leaky":
        return Leaky(width)


class LeakyState(NamedTuple):
    hidden: Tensor


class Leaky(Mixer[LeakyState]):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.write, self.read = nn.Linear(width, width), nn.Linear(width, width)
        self.rate = nn.Parameter(torch.linspace(0, 4, width))

    def init_state(self, batch, *, device=None, dtype=None) -> LeakyState:
        return LeakyState(torch.zeros(batch, len(self.rate), device=device))

    def forward(self, x, state=None, resets=None):
        a = self.rate.sigmoid()
        hidden = None if state is None else state.hidden
        b = (1 - a) * self.write(x)
        h, hidden = linear_scan(a.expand_as(b), b, state=hidden, resets=resets)
        return self.read(h), LeakyState(hidden)


if __name__ == "__main__":
    mixer, x = LeakyConfig().build(16), torch.randn(2, 50, 16)
    resets = torch.rand(2, 50) < 0.1
    y, last = mixer(x, None, resets)
    y1, s = mixer(x[:, :20], None, resets[:, :20])
    y2, s = mixer(x[:, 20:], s, resets[:, 20:])
    torch.testing.assert_close((torch.cat([y1, y2], 1), s), (y, last), atol=1e-5, rtol=0)
    print("the whole equals its pieces, resets and all; `make check` has six more laws")

    two = (LeakyConfig(), LeakyConfig())
    config = ModelConfig(head=NextToken(vocab=9), layers=two, width=16, tokens=(9,))
    logits, _ = SequenceModel(config)(torch.randint(9, (2, 50)))
    print("in a model of two layers:", tuple(logits.shape))
