"""Nonlinear recurrent cells, and the scan that runs any of them.

    y_t, state_t = cell.step(u_t, state_{t-1})        u = cell.project(x): all that x alone decides

A cell is a NamedTuple of weights with three functions (`Cell`). A reset at t puts the cell's fresh
state in the place of state_{t-1}. The gates of LSTM and GRU are ordered as in torch and cuDNN.
Sources: Elman (1990); LSTM, Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al.
(2000); GRU (arXiv:1406.1078) with cuDNN's reset after the product; sLSTM (arXiv:2405.04517).
"""

from collections.abc import Callable, Mapping
from functools import partial, reduce
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from stepscan.kernels import available
from stepscan.kernels import cell_scan as kernel
from stepscan.names import lookup
from stepscan.ops.arguments import as_resets
from stepscan.ops.newton import newton
from stepscan.ops.projection import project

LONG = 8
"""Steps (between resets) from which a native loop, or torch's own one, is the faster one."""
NEWTON = 128
"""Steps from which Newton's method derives a channelwise cell faster than a loop."""
EMPTY = -1e30
"""sLSTM's logarithm of nothing: finite, so that no difference of two of them is NaN."""


@runtime_checkable
class Cell(Protocol):
    """What `cell_scan` asks of a NamedTuple of weights."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        ...

    def init(self, batch: int) -> Any:
        """The fresh state: a NamedTuple of [B, ...] tensors, in the dtype of the weights."""
        ...

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T ..."]:
        """What the steps need of x, for all tokens at once."""
        ...

    def step(self, u: Float[Tensor, "B ..."], state: Any) -> tuple[Float[Tensor, "B E"], Any]:
        """One token: its output, and the state after it."""
        ...


class Native(NamedTuple):
    """What the native kernel needs to know of a cell; with a property `native`, it has form "cpu".

    The tensors of its state are all of one shape, the hidden state h first, and y = h.
    """

    kind: str
    """"gru", "lstm", "slstm", or f in tanh, relu, identity for any h = f(u + R h_{t-1})."""
    weight: Float[Tensor, "H K gates_of_head"]
    """R^T, head by head, its columns in the order of u."""
    bias: Float[Tensor, "gates"] | None = None
    """What comes to R h and is not in u."""


class HiddenState(NamedTuple):
    """State of `Elman` and `GRU`."""

    hidden: Float[Tensor, "B E"]


class Elman(NamedTuple):
    """h_t = tanh(W x_t + b + R h_{t-1} + b_r); y = h. The weights of `torch.nn.RNN`."""

    input_weight: Float[Tensor, "E D"]
    recurrent_weight: Float[Tensor, "E E"]
    input_bias: Float[Tensor, "E"]
    recurrent_bias: Float[Tensor, "E"]

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        return self.input_weight.shape[1], self.recurrent_weight.shape[1]

    @property
    def native(self) -> Native:
        """For form "cpu"."""
        return Native("tanh", self.recurrent_weight.mT[None])

    def init(self, batch: int) -> HiddenState:
        """Zero."""
        return HiddenState(self.recurrent_weight.new_zeros(batch, self.sizes[1]))

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """W x + b + b_r."""
        return project(x, self.input_weight, self.input_bias + self.recurrent_bias)

    def fused(
        self, x: Float[Tensor, "B T D"], state: HiddenState
    ) -> tuple[Float[Tensor, "B T E"], HiddenState]:
        """A stretch without resets, by torch's own loop."""
        y, hidden = torch.rnn_tanh(x, state.hidden[None], self, True, 1, 0.0, False, False, True)
        return y, HiddenState(hidden[0])

    def step(
        self, u: Float[Tensor, "*h B E"], state: HiddenState
    ) -> tuple[Float[Tensor, "*h B E"], HiddenState]:
        """One token."""
        hidden = _affine(u, state.hidden, self.recurrent_weight).tanh()
        return hidden, HiddenState(hidden)


class GRU(NamedTuple):
    """The gated recurrent unit with the weights of `torch.nn.GRU`, gates in the order r, z, n.

        r, z = sigmoid(W x_t + b + R h_{t-1} + b_r)
        n = tanh(W_n x_t + b_n + r * (R_n h_{t-1} + b_rn))
        h_t = (1 - z) * n + z * h_{t-1};  y = h

    z keeps the old state, and r acts after the product, which is why the two biases stay apart.
    """

    input_weight: Float[Tensor, "gates D"]
    recurrent_weight: Float[Tensor, "gates E"]
    input_bias: Float[Tensor, "gates"]
    recurrent_bias: Float[Tensor, "gates"]

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        return self.input_weight.shape[1], self.recurrent_weight.shape[1]

    @property
    def native(self) -> Native:
        """For form "cpu"."""
        return Native("gru", self.recurrent_weight.mT[None], self.recurrent_bias)

    def init(self, batch: int) -> HiddenState:
        """Zero."""
        return HiddenState(self.recurrent_weight.new_zeros(batch, self.sizes[1]))

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T gates"]:
        """W x + b."""
        return project(x, self.input_weight, self.input_bias)

    def fused(
        self, x: Float[Tensor, "B T D"], state: HiddenState
    ) -> tuple[Float[Tensor, "B T E"], HiddenState]:
        """A stretch without resets, by torch's own loop."""
        y, hidden = torch.gru(x, state.hidden[None], self, True, 1, 0.0, False, False, True)
        return y, HiddenState(hidden[0])

    def step(
        self, u: Float[Tensor, "*h B gates"], state: HiddenState
    ) -> tuple[Float[Tensor, "*h B E"], HiddenState]:
        """One token."""
        width = self.recurrent_weight.shape[-1]
        split = [2 * width, width]
        past = _affine(self.recurrent_bias, state.hidden, self.recurrent_weight)
        (gates, new), (past_gates, past_new) = u.split(split, -1), past.split(split, -1)
        r, z = (gates + past_gates).sigmoid().chunk(2, -1)
        new = (new + r * past_new).tanh()
        hidden = new + z * (state.hidden - new)
        return hidden, HiddenState(hidden)


class LSTMState(NamedTuple):
    """State of `LSTM`."""

    hidden: Float[Tensor, "B E"]
    cell: Float[Tensor, "B E"]


class LSTM(NamedTuple):
    """Long short-term memory with the weights of `torch.nn.LSTM`, gates in the order i, f, g, o.

    i, f, o = sigmoid(W x_t + b + R h_{t-1} + b_r);  g = tanh(the same)
    c_t = f * c_{t-1} + i * g;  h_t = o * tanh(c_t);  y = h
    """

    input_weight: Float[Tensor, "gates D"]
    recurrent_weight: Float[Tensor, "gates E"]
    input_bias: Float[Tensor, "gates"]
    recurrent_bias: Float[Tensor, "gates"]

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        return self.input_weight.shape[1], self.recurrent_weight.shape[1]

    @property
    def native(self) -> Native:
        """For form "cpu"."""
        return Native("lstm", self.recurrent_weight.mT[None])

    def init(self, batch: int) -> LSTMState:
        """Zeros."""
        zeros = self.recurrent_weight.new_zeros(batch, self.sizes[1])
        return LSTMState(zeros, zeros)

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T gates"]:
        """W x + b + b_r."""
        return project(x, self.input_weight, self.input_bias + self.recurrent_bias)

    def fused(
        self, x: Float[Tensor, "B T D"], state: LSTMState
    ) -> tuple[Float[Tensor, "B T E"], LSTMState]:
        """A stretch without resets, by torch's own loop."""
        before = state.hidden[None], state.cell[None]
        y, hidden, cell = torch.lstm(x, before, self, True, 1, 0.0, False, False, True)
        return y, LSTMState(hidden[0], cell[0])

    def step(
        self, u: Float[Tensor, "*h B gates"], state: LSTMState
    ) -> tuple[Float[Tensor, "*h B E"], LSTMState]:
        """One token."""
        gates = _affine(u, state.hidden, self.recurrent_weight)
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * state.cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        return hidden, LSTMState(hidden, cell)


class SLSTMState(NamedTuple):
    """State of `SLSTM`."""

    hidden: Float[Tensor, "B H K"]
    cell: Float[Tensor, "B H K"]
    normalizer: Float[Tensor, "B H K"]
    log_scale: Float[Tensor, "B H K"]


class SLSTM(NamedTuple):
    """LSTM with exponential gates, a normaliser and a head-wise recurrence.

        i~, f~, z~, o~ = x_t + R h_{t-1}        x: [B, T, 4 H K], the gates' own parts of the input
        m_t = max(i~, logsigmoid(f~) + m_{t-1})
        i = exp(i~ - m_t);  f = exp(logsigmoid(f~) + m_{t-1} - m_t)
        c_t = f * c_{t-1} + i * tanh(z~);  n_t = f * n_{t-1} + i
        h_t = sigmoid(o~) * c_t / n_t;  y = h

    x is what a block computes from its input (W x + b, in xLSTM head by head and partly behind a
    convolution). The published first step is m_1 = i~, taken where n is zero in the whole batch.
    Here the fresh state has c = n = 0 and m = -1e30: then max gives m_1 = i~ and f = 0 exactly, for
    any i~ above -1e29, row by row, without a branch and without the NaN of -inf - (-inf). From
    the first token on n is at least 1: of i and f, the one that m was taken from is 1.
    """

    recurrent_weight: Float[Tensor, "H K 4 K"]

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        heads, size = self.recurrent_weight.shape[:2]
        return 4 * heads * size, heads * size

    @property
    def native(self) -> Native:
        """For form "cpu"."""
        return Native("slstm", self.recurrent_weight.flatten(2))

    def init(self, batch: int) -> SLSTMState:
        """No memory: zeros, and a scale of nothing."""
        zeros = self.recurrent_weight.new_zeros(batch, *self.recurrent_weight.shape[:2])
        return SLSTMState(zeros, zeros, zeros, torch.full_like(zeros, EMPTY))

    def project(self, x: Float[Tensor, "B T gates"]) -> Float[Tensor, "B T H gates_of_head"]:
        """The same numbers, all gates of a head together."""
        return x.unflatten(-1, (4, *self.recurrent_weight.shape[:2])).transpose(2, 3).flatten(3)

    def step(
        self, u: Float[Tensor, "B H gates_of_head"], state: SLSTMState
    ) -> tuple[Float[Tensor, "B E"], SLSTMState]:
        """One token."""
        past = torch.bmm(state.hidden.transpose(0, 1), self.recurrent_weight.flatten(2))
        i, f, z, o = (u + past.transpose(0, 1)).chunk(4, -1)
        kept = F.logsigmoid(f) + state.log_scale
        log_scale = torch.maximum(i, kept)
        i, f = (i - log_scale).exp(), (kept - log_scale).exp()
        cell = f * state.cell + i * z.tanh()
        normalizer = f * state.normalizer + i
        hidden = o.sigmoid() * (cell / normalizer)
        return hidden.flatten(1), SLSTMState(hidden, cell, normalizer, log_scale)


def recurrent(
    cell: Cell,
    x: Float[Tensor, "B T D"],
    *,
    state: Any,
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T E"], Any]:
    """The definition, one step at a time; only the products with x are taken for all at once."""
    ys: list[Tensor] = []
    fresh, marks = cell.init(x.shape[0]), as_resets(resets, x).unbind(1)
    for u_t, reset in zip(cell.project(x).unbind(1), marks, strict=True):
        if resets is not None:
            state = type(state)(*map(_where(reset), fresh, state))
        y, state = cell.step(u_t, state)
        ys.append(y)
    return torch.stack(ys, 1), state


def fused(
    cell: Any,
    x: Float[Tensor, "B T D"],
    *,
    state: Any,
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T E"], Any]:
    """torch's own loops, from reset to reset; for the cells that torch has, outside of graphs."""
    if not hasattr(cell, "fused"):
        raise ValueError(f"cell_scan: torch has no loop for {type(cell).__name__}; use 'recurrent'")
    cuts = [] if resets is None else resets.any(0).nonzero()[:, 0].tolist()
    fresh = cell.init(x.shape[0])
    ys: list[Tensor] = []
    with torch.autocast(x.device.type, enabled=False):  # it would make the state narrow
        for start, end in pairwise([*dict.fromkeys([0, *cuts]), x.shape[1]]):
            if resets is not None and start in cuts:
                state = type(state)(*map(_where(resets[:, start]), fresh, state))
            y, state = cell.fused(x[:, start:end], state)
            ys.append(y)
    return torch.cat(ys, 1), state


def cpu(
    cell: Any,
    x: Float[Tensor, "B T D"],
    *,
    state: Any,
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T E"], Any]:
    """The native kernel, float32 on CPU: all steps in one call."""
    if not hasattr(cell, "native"):
        raise ValueError(f"cell_scan: {type(cell).__name__} has no property `native`")
    with torch.autocast(x.device.type, enabled=False):  # it would make u narrow
        u = cell.project(x)
    kind, weight, bias = cell.native
    y, last = kernel.cell_scan(kind, u, weight, bias, torch.stack(state), resets)
    return y, type(state)(*last.unbind())


def _pick(cell: Any, x: Tensor, resets: Bool[Tensor, "B T"] | None) -> str:
    """A loop outside of Python starts slowly: it is worth it for stretches of some length.

    torch has a fast one for LSTM only, which has to start anew after each reset: on one thread, and
    where many rows share the weights, it is the faster one (docs/log.md). Newton's rounds over
    independent channels take about as long as a loop forward, but far less than one to derive.
    """
    T, graph = x.shape[1], torch.compiler.is_compiling()
    if T < LONG:
        return "recurrent"
    if x.dtype == torch.float32 and x.device.type == "cpu" and available("cell_scan"):
        whole = not graph and (resets is None or not resets.any())
        many = x.shape[0] > 4 and x.shape[0] * cell.sizes[1] >= 2048
        if whole and isinstance(cell, LSTM) and (many or torch.get_num_threads() == 1):
            return "fused"
        if hasattr(cell, "native"):
            return "cpu"
    if T >= NEWTON and torch.is_grad_enabled() and not graph and hasattr(cell, "channelwise"):
        return "newton"
    if graph or not hasattr(cell, "fused"):
        return "recurrent"
    return "fused" if resets is None or int(resets.any(0).sum()) <= T // LONG else "recurrent"


def _affine(
    u: Float[Tensor, "... gates"],
    hidden: Float[Tensor, "*h B K"],
    weight: Float[Tensor, "*h gates K"],
) -> Float[Tensor, "*h B gates"]:
    """u + R h, also head by head, for ops/headed_cells.py."""
    return (torch.addmm if weight.ndim == 2 else torch.baddbmm)(u, hidden, weight.mT)


def _where(reset: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda new, old: torch.where(reset.view(-1, *[1] * (old.ndim - 1)), new, old)


FORMS: Mapping[str, Callable[..., tuple[Tensor, Any]]] = MappingProxyType(
    {"recurrent": recurrent, "fused": fused, "cpu": cpu, "newton": partial(newton, loop=recurrent)}
)


def cell_scan(
    cell: Any,
    x: Float[Tensor, "B T D"],
    *,
    state: Any = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T E"], Any]:
    """Run a cell over x; the state is the cell's own NamedTuple.

    It computes in the widest dtype of x, weights and state, float32 at least. The state stays in
    that dtype, y has x's. `form="auto"` never changes the result.
    """
    inputs, outputs = cell.sizes
    if x.ndim != 3 or x.shape[2] != inputs:
        raise ValueError(f"cell_scan: want x [B T D] with D = {inputs}, got {tuple(x.shape)}")
    resets = None if resets is None else as_resets(resets, x)
    given = (t for t in pytree.tree_leaves((x, cell, state)) if isinstance(t, Tensor))
    dtype = reduce(torch.promote_types, (t.dtype for t in given), torch.float32)
    cell = pytree.tree_map_only(Tensor, lambda weight: weight.to(dtype), cell)
    fresh = cell.init(x.shape[0])
    state = fresh if state is None else type(fresh)(*(t.to(dtype) for t in state))
    for name, want, got in zip(fresh._fields, fresh, state, strict=True):
        if got.shape != want.shape:
            raise ValueError(f"state.{name}: want {tuple(want.shape)}, got {tuple(got.shape)}")
    wide = x.to(dtype)
    form = _pick(cell, wide, resets) if form == "auto" else form
    run = lookup(FORMS, form, kind="form of cell_scan")
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], 0, outputs), state
    y, state = run(cell, wide, state=state, resets=resets)
    return y.to(x.dtype), state
