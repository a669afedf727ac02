"""What happens next, and when."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.models.heads.base import HeadConfig, Logits, positive
from stepscan.models.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class NextEvent(HeadConfig):
    """The type of the next event and the time to it, see `EventOutput`."""

    name: ClassVar[str] = "next_event"

    vocab: int
    """Number of event types V."""
    mixtures: int = 4
    """Components M of the log-normal mixture of the time to the next event."""
    remaining: bool = False
    """Also say the time to the last event of the sequence, in the same way."""

    def __post_init__(self) -> None:
        """Reject empty sizes."""
        positive(self, "vocab", "mixtures")

    @property
    def vocabulary(self) -> int:
        """All V."""
        return self.vocab

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """Logits, and the parameters of the mixtures."""
        return EventHead(width, self, table)


class EventOutput(NamedTuple):
    """What `NextEvent` says after every step."""

    logits: Float[Tensor, "B T V"]
    """Of the type of the next event."""
    gap: Float[Tensor, "B T 3 M"]
    """Of a normal mixture over log(time to the next event): log weights, means, log scales."""
    remaining: Float[Tensor, "B T 3 M"] | None = None
    """The same of the time to the last event of the sequence; no components where it is unsaid."""


class EventHead(nn.Module):
    """See `EventOutput`."""

    def __init__(self, width: int, config: NextEvent, table: nn.Embedding | None) -> None:
        super().__init__()
        self.kind = Logits(width, config.vocab, table)
        self.gap = _mixture_map(width, config.mixtures)
        self.remaining = _mixture_map(width, config.mixtures) if config.remaining else None

    def forward(self, x: Float[Tensor, "B T D"], inputs: Inputs) -> EventOutput:
        """Logits and mixtures."""
        gap = _mixture(self.gap(x))
        remaining = gap[..., :0] if self.remaining is None else _mixture(self.remaining(x))
        return EventOutput(self.kind(x, inputs), gap, remaining)


def _mixture_map(width: int, mixtures: int) -> Linear:
    """To 3 M numbers; components start apart, so that they do not all learn the same."""
    made = Linear(width, 3 * mixtures)
    nn.init.normal_(made.weight, std=0.1 * width**-0.5)
    with torch.no_grad():
        means = torch.linspace(-2.0, 2.0, mixtures)
        made.bias.copy_(torch.cat([0 * means, means, 0 * means]))
    return made


def _mixture(raw: Float[Tensor, "B T M3"]) -> Float[Tensor, "B T 3 M"]:
    """Log weights, means and log scales from free numbers."""
    weights, means, scales = raw.unflatten(-1, (3, -1)).unbind(-2)
    # Scales from e^-5 to e^3: a spike on one exact gap would buy an unbounded likelihood.
    scales = 4 * torch.tanh(scales / 4) - 1
    return torch.stack([weights.log_softmax(-1), means, scales], -2)
