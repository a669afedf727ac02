"""Recurrent cells from parts: gates, recurrence and attention chosen one by one (arXiv:2410.02654).

    x' = x, or attend(x): another mixer reads the inputs first
    u = W x' + b;   p_l = R_l h + b_l at each of `depth` turns l, if there is a recurrence
    h: see `Composed` in ops/composed_cells.py for what each gate does with u and p

Settings of the named ones: GRU, the default; LSTM: gate="separate", reset=False, output_gate=True;
Elman: gate="none", reset=False; recurrent highway network (arXiv:1607.03474): reset=False and
depth > 1, whose transform gate is 1 - z; the mixer of a Transformer: gate="none", recur=False,
reset=False, attend=attention. For asking which part it is that a data set wants.
The paper's own list of parts could not be read here: gates are those of the literature, and its
attention inside of recurrent cells is taken as attention to the inputs in front of them.
First values: uniform in +-1/sqrt(E), as in torch's LSTM; the logit of a rate 0.
State: B x E floats, twice with an output gate, and that of `attend`.   Cost: O(T depth E (D + E)).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.recurrent import Recurrent
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.composed_cells import GATES, Composed, parts


@dataclass(frozen=True, kw_only=True)
class CellFactoryConfig(MixerConfig):
    """Config of a cell made from parts."""

    name: ClassVar[str] = "cell_factory"
    equation: ClassVar[str] = "h = gate(h, tanh(W attend(x)_t + R h))"
    source: ClassVar[str] = "Heidenreich et al. 2024, arXiv:2410.02654"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="nonlinear RNN",
        transition="nonlinear",
        gate="state",
        eigenvalues="any",
        ops=("cell_scan",),
    )

    gate: str = "coupled"
    """How the new meets the old: none, additive, rate, coupled or separate."""
    reset: bool = True
    """A gate on what the candidate sees of the past, as in GRU."""
    output_gate: bool = False
    """A gate on what is told of the cell, as in LSTM."""
    recur: bool = True
    """Whether gates and candidate see the past at all."""
    depth: int = 1
    """Turns that the recurrence takes for each token, as in recurrent highway networks."""
    attend: MixerConfig | None = None
    """A mixer that reads the inputs first, as a Transformer's does. None: there is none."""

    def build(self, width: int) -> "CellFactory":
        """Build the module for a model of this width."""
        lookup(GATES, self.gate, kind="gate of cell_factory")
        if self.depth < 1:
            raise ValueError(f"cell_factory: want depth >= 1, got {self.depth}")
        if not self.recur and (self.reset or self.depth > 1):
            raise ValueError(
                "cell_factory: without recurrence (recur=False) there is nothing to reset and no "
                f"depth; want reset=False and depth=1, got {self.reset} and {self.depth}"
            )
        if self.has_no_cell and self.attend is None:
            raise ValueError(
                "cell_factory: neither gate nor recurrence leaves no memory; want a gate, "
                "recur=True, or attend (a mixer's config)"
            )
        if self.has_no_cell and self.output_gate:
            raise ValueError("cell_factory: output_gate wants a gate or recur=True")
        attend = None if self.attend is None else self.attend.build(width)
        if attend is not None and not attend.causal:
            raise ValueError(f"cell_factory: want a causal mixer to attend, got {attend}")
        return CellFactory(self, width, attend)

    @property
    def has_no_cell(self) -> bool:
        """Whether nothing but attend is left."""
        return self.gate == "none" and not self.recur


class CellFactoryState(NamedTuple):
    """What `CellFactory` carries from one stretch to the next: the states of its parts."""

    cell: Any
    attend: Any


class CellFactory(Mixer[CellFactoryState]):
    """See the module docstring."""

    def __init__(self, config: CellFactoryConfig, width: int, attend: Mixer[Any] | None) -> None:
        super().__init__()
        self.config = config
        self.part = None if config.has_no_cell else ComposedCell(config, width)
        self.attend = attend

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> CellFactoryState:
        """The fresh states of the parts."""
        states = (
            () if part is None else part.init_state(batch, device=device, dtype=dtype)
            for part in (self.part, self.attend)
        )
        return CellFactoryState(*states)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: CellFactoryState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], CellFactoryState]:
        """Mix along T."""
        cell, attend = (None, None) if state is None else state
        if self.attend is not None:
            x, attend = self.attend(x, attend or None, resets)
        if self.part is not None:
            x, cell = self.part(x, cell or None, resets)
        return x, CellFactoryState(cell or (), attend or ())


class ComposedCell(Recurrent):
    """The cell by itself."""

    def __init__(self, config: CellFactoryConfig, width: int) -> None:
        super().__init__(width, width)
        self.config = config
        gates = width * len(parts(config.gate, reset=config.reset, output_gate=config.output_gate))
        empty = lambda *shape: nn.Parameter(torch.empty(shape))  # noqa: E731
        self.input_weight = empty(gates, width)
        self.recurrent_weight = empty(config.depth, gates, width) if config.recur else None
        self.input_bias = empty(gates)
        self.recurrent_bias = empty(config.depth, gates) if config.recur else None
        self.rate = empty(width) if config.gate == "rate" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        bound = self.input_weight.shape[1] ** -0.5
        for p in self.parameters():
            nn.init.uniform_(p, -bound, bound)
        if self.rate is not None:
            nn.init.zeros_(self.rate)

    def cell(self) -> Composed:
        """The weights as a cell."""
        config = self.config
        return Composed(
            self.input_weight,
            self.input_bias,
            self.recurrent_weight,
            self.recurrent_bias,
            self.rate,
            config.gate,
            config.reset,
            config.output_gate,
        )
