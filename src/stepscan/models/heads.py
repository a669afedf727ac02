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
from stepscan.models.bands import Bands
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
class NextItem(HeadConfig):
    """Logits of the next item, [B T V]; while training what they are made of, see `ItemScores`."""

    name: ClassVar[str] = "next_item"
    asks: ClassVar[tuple[str, ...]] = ("softmax", "binary", "sampled")

    vocab: int
    """Number of items V, with the one that is not known."""
    bias: bool = True
    """Add a bias to the logits."""
    loss: str = "softmax"
    """What training descends, see `train/item_loss.py`: softmax, binary or sampled."""
    negatives: int = 1
    """Items drawn beside each wanted one, for binary and sampled."""

    def __post_init__(self) -> None:
        """Reject an empty vocabulary and a loss that is none."""
        _positive(self, "vocab", "negatives")
        lookup(dict.fromkeys(self.asks), self.loss, kind="loss of next_item")

    @property
    def vocabulary(self) -> int:
        """All V."""
        return self.vocab

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map, or the transpose of the input embedding."""
        return ItemLogits(width, self.vocab, table, bias=self.bias)


@dataclass(frozen=True, kw_only=True)
class Cloze(HeadConfig):
    """Logits of the item that stands at each step, [B T V], asked where it was hidden.

    BERT4Rec (Sun et al. 2019, arXiv:1904.06690). Hidden items read as symbol 0, the item that is
    not known; what comes next is asked by one more step of it. Training: `train/cloze.py`.
    """

    name: ClassVar[str] = "cloze"
    ahead: ClassVar[bool] = False

    vocab: int
    """Number of items V, with the one that is not known."""
    bias: bool = True
    """Add a bias to the logits."""
    project: bool = False
    """Map and gelu before the logits, as published."""
    share: float = 0.2
    """Part of the items hidden while training."""
    last: float = 0.0
    """Part of the sequences where only the last item is hidden, as it will be asked for."""

    def __post_init__(self) -> None:
        """Reject an empty vocabulary and parts that are none."""
        _positive(self, "vocab")
        for name in ("share", "last"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"cloze: want {name} from 0 to 1, got {getattr(self, name)}")
        if not self.share and self.last < 1:
            raise ValueError("cloze: want share above 0, or last=1; nothing would be hidden")

    @property
    def vocabulary(self) -> int:
        """All V."""
        return self.vocab

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map, or the transpose of the input embedding."""
        return ItemLogits(width, self.vocab, table, bias=self.bias, project=self.project)


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
        _positive(self, "vocab", "mixtures")

    @property
    def vocabulary(self) -> int:
        """All V."""
        return self.vocab

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """Logits, and the parameters of the mixtures."""
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
    calibrated: bool = False
    """Keep a factor per level, by which the distance from the middle quantile is stretched, and how
    errors hang together along the horizon: measured after training, see apps/series/calibration."""
    measured: str = "base"
    """What the answers are measured from: base, the seasonal naive forecast, in units of its errors
    (target "future"); level, the median of the series, in its own scale (target "level")."""

    def __post_init__(self) -> None:
        """Reject levels that are not levels."""
        _positive(self, "horizon")
        lookup(dict.fromkeys(("base", "level")), self.measured, kind="measured")
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
    weights: tuple[float, ...] = ()
    """Of each class in training; none is 1 for all."""
    smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes (arXiv:1512.00567)."""

    def __post_init__(self) -> None:
        """Reject an empty set of classes, and weights that do not fit it."""
        _positive(self, "classes")
        if self.weights and (len(self.weights) != self.classes or not min(self.weights) > 0):
            raise ValueError(
                f"classify: want {self.classes} weights above 0 or none, got {self.weights}"
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"classify: want 0 <= smoothing < 1, got {self.smoothing}")

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map."""
        return Logits(width, self.classes, None)


@dataclass(frozen=True, kw_only=True)
class Ctc(HeadConfig):
    """Logits of a blank and of the symbols of a text that the sequence spells, [B T V+1].

    Connectionist temporal classification (Graves et al. 2006); `generate.ctc` reads the text.
    """

    name: ClassVar[str] = "ctc"
    ahead: ClassVar[bool] = False

    symbols: int
    """Number of symbols V; 0 is the blank, symbol i is 1 to V."""

    def __post_init__(self) -> None:
        """Reject an empty alphabet."""
        _positive(self, "symbols")

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map."""
        return Logits(width, self.symbols + 1, None)


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
    {
        head.name: head
        for head in (Classify, Cloze, Ctc, Forecast, NextEvent, NextItem, NextToken, Regress)
    }
)


def to_dict(head: HeadConfig) -> dict[str, Any]:
    """Plain data; the inverse of `from_dict`."""
    return {"name": head.name, **dataclasses.asdict(head)}


def from_dict(data: Mapping[str, Any]) -> HeadConfig:
    """A head from plain data; unknown names and keys are errors."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    # These build on this module.
    from stepscan.models.enhanced_item import EnhancedItem  # noqa: PLC0415
    from stepscan.models.sentence_head import NextSentence  # noqa: PLC0415

    later = {head.name: head for head in (EnhancedItem, NextSentence)}
    known_heads: dict[str, type[HeadConfig]] = {**HEADS, **later}
    cls = lookup(known_heads, str(options.pop("name", "")), kind="head")
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
    remaining: Float[Tensor, "B T 3 M"] | None = None
    """The same of the time to the last event of the sequence; no components where it is unsaid."""


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


class ItemScores(NamedTuple):
    """Logits before they are worked out, x W^T + b: a loss may need few of them."""

    x: Float[Tensor, "B T D"]
    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, "V"] | None


class ItemLogits(Logits):
    """`Logits` that leave the product to the loss while training."""

    def __init__(
        self,
        width: int,
        vocab: int,
        table: nn.Embedding | None,
        *,
        bias: bool = True,
        project: bool = False,
    ) -> None:
        super().__init__(width, vocab, table, bias=bias)
        self.project = Linear(width, width) if project else None

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "B T D"], inputs: Inputs
    ) -> Float[Tensor, "B T V"] | ItemScores:
        """Logits, or what they are made of."""
        if self.project is not None:
            x = F.gelu(self.project(x))
        if self.training:
            return ItemScores(x, self.map.weight, self.map.bias)
        return self.map(x)


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


class Quantiles(Bands):
    """The middle quantile and the steps from it are linear in the state of the model."""

    def __init__(self, width: int, reals: int, config: Forecast) -> None:
        super().__init__(len(config.quantiles), calibrated=config.calibrated)
        self.highway = Linear(reals, config.horizon, bias=False) if reals else None
        if self.highway is not None:
            nn.init.zeros_(self.highway.weight)
        self.shape = config.horizon, len(config.quantiles)
        self.map = Linear(width, config.horizon * len(config.quantiles))
        nn.init.normal_(self.map.weight, std=0.1 * width**-0.5)
        nn.init.zeros_(self.map.bias)

    def forward(self, x: Float[Tensor, "B T D"], inputs: Inputs) -> Float[Tensor, "B T H Q"]:
        """Quantiles for every step ahead."""
        raw = self.map(x).unflatten(-1, self.shape)
        below, middle, above = raw.tensor_split([self.middle, self.middle + 1], -1)
        if self.highway is not None and inputs.reals is not None:
            middle = middle + self.highway(inputs.reals.to(x.dtype))[..., None]
        return self.around(below, middle, above)


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"head: want {name} >= 1, got {value!r}")
