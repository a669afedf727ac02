r"""Linear models of series: one map from the last L values to the next H, for every series alike.

    linear    y = W x + b                                    x: the last L values, oldest first
    nlinear   y = W (x - x_L) + x_L + b                      x_L: the last of them
    dlinear   y = W_t m + W_r (x - m) + b                    m: moving average of x, edges repeated
    ar        y = W x + b, with R(W) added to the loss
              R(W) = mean(2 / (1 + exp(-c |w|^(1/c))) - 1)

Sources: Zeng et al. 2022, arXiv:2205.13504 (the first three, LTSF-Linear); Triebe et al. 2019,
arXiv:1911.12436 (AR-Net). They are whole models, not layers: they read the value itself (the first
real input, `data.panel.Panel.inputs`), no covariate and no calendar. Values are measured from the
median of a series in its robust standard deviation, where the papers take mean and standard
deviation, and so are the answers (`Forecast.measured`).

AR-Net adds lambda R with lambda = 0.01 (1 / s - 1), where s is the share of lags that one expects
to matter, and c = 3; |w| is taken as |w| + 1e-3 here, because the gradient of the cube root is
unbounded at 0 and one clipped step would drown all others. The paper's strength depends on the
noise of the series (about 0.01 of its standard deviation); values are of unit scale here.

Where the papers are silent: before the first value of a series that value is repeated, a missing
value repeats the last one seen (0, the median, where there is none), and quantiles lie at learned
distances from the answer, one per step ahead and level, the same at all times.
State: B x (L - 1) floats, the last values.   Cost: O(T L H).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.costs import charge
from stepscan.layers.projection import Linear
from stepscan.models import heads
from stepscan.models.bands import ConstantBands
from stepscan.models.heads import Forecast, HeadConfig, Regress
from stepscan.models.inputs import Inputs, as_inputs
from stepscan.models.model import SequenceModel, State
from stepscan.names import lookup

VALUE, MISSING = 0, 1  # of the real inputs of a series
LONGEST = 1 << 16  # of a window
STRENGTH, CURVE, ROUND = 0.01, 3.0, 1e-3  # of AR-Net's regulariser


@dataclass(frozen=True, kw_only=True)
class LinearSeriesConfig:
    """Config of a linear model; the pattern `dlinear[window=336]` stands for one of them."""

    family: ClassVar[str] = "linear_series"
    tokens: ClassVar[tuple[int, ...]] = ()

    name: str
    """A key of MAPS: linear, dlinear, nlinear or ar."""
    head: HeadConfig
    """Forecast: quantiles. Regress: one number per step ahead, trained on squared errors."""
    reals: int
    """Number of real input columns; the value and its missing flag are the first two."""
    window: int = 336
    """Values L that it looks back at, the current one included."""
    smooth: int = 25
    """dlinear: steps of the moving average."""
    sparsity: float | None = None
    """ar: the share of lags that is expected to matter, above 0 and below 1; None: no sparsity."""

    def __post_init__(self) -> None:
        """Reject what cannot be built."""
        lookup(MAPS, self.name, kind="linear model of series")
        if not isinstance(self.head, Forecast | Regress):
            raise ValueError(
                f"{self.name}: forecasts numbers, so it wants the head forecast or regress, "
                f"got {self.head.name}"
            )
        if not isinstance(self.reals, int) or self.reals < 2:
            raise ValueError(f"{self.name}: want reals from 2 (value, missing), got {self.reals!r}")
        for key, least in (("window", 1), ("smooth", 1)):
            value = getattr(self, key)
            if not isinstance(value, int) or not least <= value <= LONGEST:
                raise ValueError(
                    f"{self.name}: want {key} from {least} to {LONGEST}, got {value!r}"
                )
        if self.sparsity is not None and (self.name != "ar" or not 0 < self.sparsity < 1):
            raise ValueError(
                f"{self.name}: sparsity belongs to ar and lies between 0 and 1, got {self.sparsity}"
            )

    @property
    def horizon(self) -> int:
        """Steps ahead H."""
        return self.head.horizon if isinstance(self.head, Forecast) else self.head.outputs  # type: ignore[attr-defined]

    @property
    def width(self) -> int:
        """The window: what a model's width is to this one."""
        return self.window

    @property
    def mixers(self) -> "tuple[LinearSeriesConfig, ...]":
        """Itself: what a list of layers shows."""
        return (self,)

    def build(self) -> "LinearSeries":
        """The model."""
        return LinearSeries(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the inverse of `from_dict`."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"family": self.family, **options, "head": heads.to_dict(self.head)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LinearSeriesConfig":
        """From plain data; unknown keys are errors."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        options = {key: value for key, value in data.items() if key != "family"}
        for key in options:
            lookup(known, key, kind="field of LinearSeriesConfig")
        return cls(**options | {"head": heads.from_dict(options.get("head", {}))})


class LinearSeriesState(NamedTuple):
    """What a linear model carries from one stretch to the next."""

    values: Float[Tensor, "B P"]
    """The last L - 1 values (one at least), newest last; what was missing is filled already."""
    begun: Int[Tensor, " B"]
    """1 where there are any."""


class LinearSeries(SequenceModel):
    """A model whose whole stack is one map: see the module docstring. It has no embedding, blocks
    or norm, and obeys the laws of a causal mixer.
    """

    def __init__(self, config: LinearSeriesConfig) -> None:
        nn.Module.__init__(self)  # none of the parts that a stack of mixers has
        self.config = config  # type: ignore[assignment]
        self._window, self._sparsity = config.window, config.sparsity
        self.map: Plain | Decomposed = MAPS[config.name](config)
        self.head: ConstantBands | None = None  # type: ignore[bad-override]
        if isinstance(head := config.head, Forecast):
            self.head = ConstantBands(head.horizon, len(head.quantiles), calibrated=head.calibrated)
        self.no_decay = tuple(name for name, _ in self.named_parameters())  # as published

    @property
    def causal(self) -> bool:
        """It looks back only."""
        return True

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LinearSeriesState:
        """No values yet."""
        like = next(self.parameters())
        wide = torch.promote_types(dtype or like.dtype, torch.float32)
        device = device or like.device
        values = torch.zeros(batch, max(self._window - 1, 1), device=device, dtype=wide)
        return LinearSeriesState(values, torch.zeros(batch, device=device, dtype=torch.int64))

    def forward(
        self,
        inputs: Tensor | Inputs,
        state: State | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Tensor, LinearSeriesState]:
        """Outputs after every step of this stretch ([B T H Q], or [B T H]), and the state."""
        reals = as_inputs(inputs, (), self.config.reals).reals
        assert reals is not None
        if state is None:
            state = self.init_state(len(reals), device=reals.device)
        assert isinstance(state, LinearSeriesState)
        windows, state = read(
            reals[..., VALUE], reals[..., MISSING] > 0, state, resets, self._window
        )
        if self._sparsity is not None:
            strength = STRENGTH * (1 / self._sparsity - 1)
            charge("sparse", sparse_cost(self.map.coefficients()), weight=strength)
        y = self.map(windows.to(next(self.parameters()).dtype))
        return y if self.head is None else self.head(y), state

    @torch.no_grad()
    def coefficients(self) -> Float[Tensor, "H L"]:
        """The weight of each past value in each step ahead; lag 1, the newest, comes first."""
        return self.map.coefficients().flip(-1)


def read(
    value: Float[Tensor, "B T"],
    missing: Bool[Tensor, "B T"],
    state: LinearSeriesState,
    resets: Bool[Tensor, "B T"] | None,
    window: int,
) -> tuple[Float[Tensor, "B T L"], LinearSeriesState]:
    """The last L values at every step, oldest first, and the state after the last step."""
    B, T = value.shape
    if not T:
        return value.new_zeros(B, 0, window), state
    at = torch.arange(T, device=value.device)
    starts = torch.zeros_like(missing) if resets is None else resets.clone()
    starts[:, 0] |= state.begun == 0
    begin = torch.where(starts, at, -1).cummax(1).values  # of the segment; -1: before this stretch
    seen = torch.where(missing, -1, at).cummax(1).values
    held = torch.where(seen >= 0, seen, 0)
    known = torch.where(seen >= begin.clamp(min=0), value.gather(1, held), torch.zeros_like(value))
    last = state.values[:, -1:].to(value.dtype)
    known = torch.where((seen < 0) & (begin < 0), last, known)
    past = state.values.shape[1]
    line = torch.cat([state.values.to(value.dtype), known], 1)
    # In a segment that began here nothing lies before its first value, which is repeated.
    first = torch.where(begin < 0, 0, begin + past)
    place = past + at[:, None] + torch.arange(1 - window, 1, device=value.device)
    place = torch.maximum(place[None], first[..., None])
    windows = line[:, None].expand(B, T, -1).gather(2, place)
    kept = past + T - 1 + torch.arange(1 - past, 1, device=value.device)
    kept = torch.maximum(kept[None].expand(B, -1), first[:, -1:])
    values = line.gather(1, kept).to(state.values.dtype)
    return windows, LinearSeriesState(values, torch.ones_like(state.begun))


def sparse_cost(weight: Float[Tensor, "H L"]) -> Float[Tensor, ""]:
    """AR-Net's regulariser R of the coefficients: 0 for a weight of 0, near 1 for a large one."""
    root = (weight.abs() + ROUND).pow(1 / CURVE) - ROUND ** (1 / CURVE)
    return (2 / (1 + torch.exp(-CURVE * root)) - 1).mean()


class Plain(nn.Module):
    """y = W x + b."""

    def __init__(self, config: LinearSeriesConfig) -> None:
        super().__init__()
        self.map = _flat(config.window, config.horizon)

    def forward(self, x: Float[Tensor, "... L"]) -> Float[Tensor, "... H"]:
        """The next values."""
        return self.map(x)

    def coefficients(self) -> Float[Tensor, "H L"]:
        """The weight of each value, oldest first."""
        return self.map.weight


class FromTheLast(Plain):
    """y = W (x - x_L) + x_L + b: what is forecast moves with the level of the window."""

    def __init__(self, config: LinearSeriesConfig) -> None:
        super().__init__(config)
        nn.init.zeros_(self.map.weight)  # the last value, to begin with

    def forward(self, x: Float[Tensor, "... L"]) -> Float[Tensor, "... H"]:
        """The next values."""
        last = x[..., -1:]
        return self.map(x - last) + last

    def coefficients(self) -> Float[Tensor, "H L"]:
        """The weight of each value, oldest first."""
        rest = 1 - self.map.weight.sum(-1, keepdim=True)
        return self.map.weight + F.pad(rest, (self.map.weight.shape[-1] - 1, 0))


class Decomposed(nn.Module):
    """y = W_t m + W_r (x - m) + b, m the moving average."""

    def __init__(self, config: LinearSeriesConfig) -> None:
        super().__init__()
        self.smooth = config.smooth
        self.trend = _flat(config.window, config.horizon)
        self.rest = _flat(config.window, config.horizon)

    def forward(self, x: Float[Tensor, "... L"]) -> Float[Tensor, "... H"]:
        """The next values."""
        edges = (self.smooth // 2, self.smooth - 1 - self.smooth // 2)
        rows = x.reshape(-1, 1, x.shape[-1])
        mean = F.avg_pool1d(F.pad(rows, edges, mode="replicate"), self.smooth, 1).view_as(x)
        return self.trend(mean) + self.rest(x - mean)

    def coefficients(self) -> Float[Tensor, "H L"]:
        """The weight of each value, oldest first: the map of each unit vector."""
        weight = self.trend.weight
        unit = torch.eye(weight.shape[-1], device=weight.device, dtype=weight.dtype)
        zero = self(torch.zeros_like(unit[:1]))
        return (self(unit) - zero).T


MAPS: Mapping[str, type[Plain] | type[Decomposed]] = MappingProxyType(
    {"ar": Plain, "dlinear": Decomposed, "linear": Plain, "nlinear": FromTheLast}
)


def _flat(window: int, horizon: int) -> Linear:
    """A linear map that begins as the mean of the window."""
    made = Linear(window, horizon)
    nn.init.constant_(made.weight, 1 / window)
    nn.init.zeros_(made.bias)
    return made
