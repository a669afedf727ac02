"""Heads: what a model says after every step. A head is a frozen config that builds its module."""

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.models.inputs import Inputs
from stepscan.names import lookup


@dataclass(frozen=True, kw_only=True)
class HeadConfig(abc.ABC):
    """Base of all heads."""

    name: ClassVar[str]
    ahead: ClassVar[bool] = True
    """Whether it says what comes next, which a model that reads both ways has seen."""

    @abc.abstractmethod
    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """The module from ([B T D], inputs) to outputs.

        Args:
            width: Model width D.
            reals: Number of real input columns.
            table: The input embedding to tie to, if any.
        """

    @property
    def vocabulary(self) -> int:
        """Number of classes that share their ids with the first categorical input; 0 for none."""
        return 0


@dataclass(frozen=True, kw_only=True)
class NextToken(HeadConfig):
    """Logits of the next token, [B T V]; also of the next item."""

    name: ClassVar[str] = "next_token"

    vocab: int
    """Number of tokens V."""
    bias: bool = True
    """Add a bias to the logits."""
    soft_cap: float | None = None
    """Keep logits y within this bound c, by c tanh(y / c) (as in Gemma 2, arXiv:2408.00118)."""

    def __post_init__(self) -> None:
        """Reject an empty vocabulary."""
        _positive(self, "vocab")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"head: want soft_cap above 0 or None, got {self.soft_cap}")

    @property
    def vocabulary(self) -> int:
        """All V."""
        return self.vocab

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map, or the transpose of the input embedding."""
        return Logits(width, self.vocab, table, bias=self.bias, soft_cap=self.soft_cap)


@dataclass(frozen=True, kw_only=True)
class NextEvent(HeadConfig):
    """The type of the next event and the time to it, see `EventOutput`."""

    name: ClassVar[str] = "next_event"

    vocab: int
    """Number of event types V."""
    mixtures: int = 4
    """Components M of the log-normal mixture of the time to the next event."""

    def __post_init__(self) -> None:
        """Reject empty sizes."""
        _positive(self, "vocab", "mixtures")

    @property
    def vocabulary(self) -> int:
        """All V."""
        return self.vocab

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """Logits, and the parameters of the mixture."""
        return EventHead(width, self, table)


@dataclass(frozen=True, kw_only=True)
class Forecast(HeadConfig):
    """Quantiles of the next H values, [B T H Q], ascending along Q."""

    name: ClassVar[str] = "forecast"

    horizon: int
    """Steps ahead H."""
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    """Levels, ascending, strictly between 0 and 1."""
    highway: bool = True
    """Add a linear map of the step's real inputs, past all blocks and norms: what a linear forecast
    could do, the model can do too (LSTNet, arXiv:1703.07015, section 3.6)."""

    def __post_init__(self) -> None:
        """Reject levels that are not levels."""
        _positive(self, "horizon")
        levels = [0.0, *self.quantiles, 1.0]
        if not self.quantiles or any(a >= b for a, b in pairwise(levels)):
            raise ValueError(
                f"forecast: want ascending quantiles between 0 and 1, got {self.quantiles}"
            )

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map to the middle quantile and the steps up and down from it."""
        return Quantiles(width, reals if self.highway else 0, self)


@dataclass(frozen=True, kw_only=True)
class Classify(HeadConfig):
    """Logits of the class of the sequence read so far, [B T V]."""

    name: ClassVar[str] = "classify"
    ahead: ClassVar[bool] = False

    classes: int
    """Number of classes V."""

    def __post_init__(self) -> None:
        """Reject an empty set of classes."""
        _positive(self, "classes")

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map."""
        return Logits(width, self.classes, None)


@dataclass(frozen=True, kw_only=True)
class Regress(HeadConfig):
    """O real numbers after every step, [B T O]; what they are is up to the target."""

    name: ClassVar[str] = "regress"

    outputs: int
    """How many numbers O."""

    def __post_init__(self) -> None:
        """Reject an answer of nothing."""
        _positive(self, "outputs")

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map."""
        return Logits(width, self.outputs, None)


HEADS: Mapping[str, type[HeadConfig]] = MappingProxyType(
    {head.name: head for head in (Classify, Forecast, NextEvent, NextToken, Regress)}
)


def to_dict(head: HeadConfig) -> dict[str, Any]:
    """Plain data; the inverse of `from_dict`."""
    return {"name": head.name, **dataclasses.asdict(head)}


def from_dict(data: Mapping[str, Any]) -> HeadConfig:
    """A head from plain data; unknown names and keys are errors."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    cls = lookup(HEADS, str(options.pop("name", "")), kind="head")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in options:
        lookup(known, key, kind=f"field of the head {cls.name}")
    return cls(**options)


class EventOutput(NamedTuple):
    """What `NextEvent` says after every step."""

    logits: Float[Tensor, "B T V"]
    """Of the type of the next event."""
    gap: Float[Tensor, "B T 3 M"]
    """Of a normal mixture over log(time to the next event): log weights, means, log scales."""


class Logits(nn.Module):
    """A linear map; with a table, its transpose and a bias."""

    def __init__(
        self,
        width: int,
        vocab: int,
        table: nn.Embedding | None,
        *,
        bias: bool = True,
        soft_cap: float | None = None,
    ) -> None:
        super().__init__()
        self.soft_cap = soft_cap
        self.map = Linear(width, vocab, bias=bias)
        nn.init.normal_(self.map.weight, std=width**-0.5)
        if bias:
            nn.init.zeros_(self.map.bias)
        if table is not None:
            self.map.weight = table.weight

    def forward(self, x: Float[Tensor, "B T D"], inputs: Inputs) -> Float[Tensor, "B T V"]:
        """Logits."""
        y = self.map(x)
        return y if self.soft_cap is None else self.soft_cap * torch.tanh(y / self.soft_cap)


class EventHead(nn.Module):
    """See `EventOutput`."""

    def __init__(self, width: int, config: NextEvent, table: nn.Embedding | None) -> None:
        super().__init__()
        self.kind = Logits(width, config.vocab, table)
        self.gap = Linear(width, 3 * config.mixtures)
        nn.init.normal_(self.gap.weight, std=0.1 * width**-0.5)
        with torch.no_grad():  # components start apart, so that they do not all learn the same
            means = torch.linspace(-2.0, 2.0, config.mixtures)
            self.gap.bias.copy_(torch.cat([0 * means, means, 0 * means]))

    def forward(self, x: Float[Tensor, "B T D"], inputs: Inputs) -> EventOutput:
        """Logits and mixture."""
        weights, means, scales = self.gap(x).unflatten(-1, (3, -1)).unbind(-2)
        # Scales from e^-5 to e^3: a spike on one exact gap would buy an unbounded likelihood.
        scales = 4 * torch.tanh(scales / 4) - 1
        gap = torch.stack([weights.log_softmax(-1), means, scales], -2)
        return EventOutput(self.kind(x, inputs), gap)


class Quantiles(nn.Module):
    """Quantiles that cannot cross: the middle one, then softplus steps up and down from it."""

    def __init__(self, width: int, reals: int, config: Forecast) -> None:
        super().__init__()
        self.highway = Linear(reals, config.horizon, bias=False) if reals else None
        if self.highway is not None:
            nn.init.zeros_(self.highway.weight)
        self.shape = config.horizon, len(config.quantiles)
        self.middle = len(config.quantiles) // 2
        self.map = Linear(width, config.horizon * len(config.quantiles))
        nn.init.normal_(self.map.weight, std=0.1 * width**-0.5)
        nn.init.zeros_(self.map.bias)

    def forward(self, x: Float[Tensor, "B T D"], inputs: Inputs) -> Float[Tensor, "B T H Q"]:
        """Quantiles for every step ahead."""
        raw = self.map(x).unflatten(-1, self.shape)
        below, middle, above = raw.tensor_split([self.middle, self.middle + 1], -1)
        if self.highway is not None and inputs.reals is not None:
            middle = middle + self.highway(inputs.reals.to(x.dtype))[..., None]
        down = F.softplus(below).flip(-1).cumsum(-1).flip(-1)
        return torch.cat([middle - down, middle, middle + F.softplus(above).cumsum(-1)], -1)


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"head: want {name} >= 1, got {value!r}")
