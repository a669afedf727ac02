"""What other libraries have for the same op, on the same numbers in the layout they like best.

Laying the inputs out is not timed. Where a peer is not installed it is left out. What a peer
computes is compared with ours, unless it is another function, timed for scale.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stepscan.analyze.speed.inputs import Inputs, steps_of_mamba2

Prepare = Callable[[Inputs], dict[str, Tensor]]


class Peer(NamedTuple):
    """Another implementation of an op."""

    name: str
    prepare: Prepare
    """Its inputs, by name, from ours."""
    run: Callable[[dict[str, Tensor]], Tensor]
    """y in our layout, [B, T, ...]."""
    needs: tuple[str, ...] = ()
    """Modules."""
    same: bool = True
    """Whether it computes the same function."""
    growth: int = 1
    """Power of T that the time of its gradients grows with, as far as is known."""
    multiple: int = 1
    """T must be a multiple of this."""

    @property
    def installed(self) -> bool:
        """Whether it can be run here."""
        return all(find_spec(module) is not None for module in self.needs)


def peers(op: str) -> list[Peer]:
    """The installed peers of an op."""
    return [peer for peer in PEERS.get(op, ()) if peer.installed]


@cache
def transformers(name: str) -> Any:
    """Something of that library, which takes seconds to import and says what it lacks."""
    module, _, attribute = f"transformers.{name}".rpartition(".")
    importlib.import_module("transformers.utils.logging").set_verbosity_error()
    return getattr(importlib.import_module(module), attribute)


def _own(t: Tensor) -> Tensor:
    """A copy of its own in memory, as if it had been made in this layout."""
    return t.detach().clone(memory_format=torch.contiguous_format)


# Mamba ------------------------------------------------------------------------------------------


def _channels_first(inputs: Inputs) -> dict[str, Tensor]:
    (x, dt), options = inputs
    found = {"hidden_states": x.mT, "dt": dt.mT, "z": options["z"].mT}
    found |= {"B": options["B"].mT, "C": options["C"].mT, "A": options["A"], "D": options["D"]}
    return {name: _own(t) for name, t in found.items()} | {"delta_bias": _own(options["dt_bias"])}


def _selective_scan(given: dict[str, Tensor], *, use_mambapy: bool) -> Tensor:
    y: Any = transformers("models.mamba.modeling_mamba.mamba_selective_scan")(
        **given, delta_softplus=True, use_mambapy=use_mambapy
    )
    return y.mT


def _mamba2_parts(inputs: Inputs) -> dict[str, Tensor]:
    (q, k, v), options = inputs
    A = steps_of_mamba2(v.shape[2])
    dt = options["log_decay"] / A
    found = {"hidden_states": v / dt[..., None], "dt": dt, "A": A, "B": k, "C": q}
    return {name: _own(t) for name, t in found.items()}


def _mamba2(given: dict[str, Tensor]) -> Tensor:
    y: Any = transformers("models.mamba2.modeling_mamba2.mamba2_chunk_scan")(
        **given, chunk_size=256
    )
    return y


def _pscan(given: dict[str, Tensor]) -> Tensor:
    pscan = importlib.import_module("mambapy.pscan").pscan
    return pscan(given["a"][..., None], given["b"][..., None]).squeeze(-1)


# Matrix memories --------------------------------------------------------------------------------


def _gated_delta_parts(inputs: Inputs) -> dict[str, Tensor]:
    (q, k, v), options = inputs
    scaled = q * q.shape[-1] ** 0.5  # it divides by this itself
    found = {"query": scaled, "key": k, "value": v}
    found |= {"g": options["log_decay"], "beta": options["beta"]}
    return {name: _own(t) for name, t in found.items()}


def _gated_delta(given: dict[str, Tensor], *, form: str) -> Tensor:
    run = transformers(f"models.qwen3_next.modeling_qwen3_next.torch_{form}_gated_delta_rule")
    return run(**given, initial_state=None, output_final_state=False)[0]


def _mlstm_parts(inputs: Inputs) -> dict[str, Tensor]:
    (q, k, v), options = inputs
    forget = -torch.log(torch.expm1(-options["log_decay"]))  # it takes the log sigmoid itself
    scaled = k * q.shape[-1] ** 0.5  # it scales the keys
    found = {"query": q, "key": scaled, "value": v}
    found |= {"igate": options["log_input"], "fgate": forget}
    return {name: _own(t.transpose(1, 2)) for name, t in found.items()}


def _mlstm(given: dict[str, Tensor]) -> Tensor:
    run = transformers("models.xlstm.modeling_xlstm.mlstm_chunkwise_native_autograd")
    return run(**given, chunk_size=64).transpose(1, 2)


def _textbook(given: dict[str, Tensor], *, chunk: int) -> Tensor:
    """Gated linear attention, all chunks at once, each anchored at its middle.

    Fast, and it overflows for strong decays, which is why it is a peer and not a form.
    """
    parts = (x.unflatten(2, (-1, chunk)).transpose(1, 2) for x in given.values())
    q, k, v, g = parts  # [B N H C .]
    total = g.cumsum(-2)
    middle, last = total[..., chunk // 2 : chunk // 2 + 1, :], total[..., -1:, :]
    scores = (q * (total - middle).exp()) @ (k * (middle - total).exp()).mT
    writes = (k * (last - total).exp()).mT @ v
    state, starts = torch.zeros_like(writes[:, 0]), []
    for write, keep in zip(writes.unbind(1), last.mT.exp().unbind(1), strict=True):
        starts.append(state)
        state = keep * state + write
    y = scores.tril() @ v + (q * total.exp()) @ torch.stack(starts, 1)
    return y.transpose(2, 3).flatten(1, 2)


def _textbook_parts(inputs: Inputs) -> dict[str, Tensor]:
    every = zip("qkvg", (*inputs[0], inputs[1]["log_decay"]), strict=True)
    return {name: _own(t.transpose(1, 2)) for name, t in every}


def _heads_first(inputs: Inputs) -> dict[str, Tensor]:
    return {name: _own(t.transpose(1, 2)) for name, t in zip("qkv", inputs[0], strict=True)}


def _softmax(given: dict[str, Tensor], *, scale: float | None = None) -> Tensor:
    q, k, v = given.values()
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return y.transpose(1, 2)


# Windows and cells ------------------------------------------------------------------------------


def _conv_parts(inputs: Inputs) -> dict[str, Tensor]:
    x, weight, bias = inputs[0]
    return {"x": _own(x.mT), "weight": _own(weight[:, None]), "bias": _own(bias)}


def _conv(given: dict[str, Tensor]) -> Tensor:
    x, weight, bias = given.values()
    past = weight.shape[2] - 1
    y = F.conv1d(x, weight, bias, padding=past, groups=len(weight))
    return F.silu(y[..., : x.shape[2]]).mT


def _cell_parts(inputs: Inputs) -> dict[str, Tensor]:
    cell, x = inputs[0]
    return {"x": _own(x), **{name: _own(t) for name, t in cell._asdict().items()}}


def _cell(given: dict[str, Tensor], *, kind: str) -> Tensor:
    x, *weights = given.values()
    fresh = x.new_zeros(1, x.shape[0], weights[1].shape[1])
    settings = weights, True, 1, 0.0, torch.is_grad_enabled(), False, True
    if kind == "lstm":  # what torch.nn.LSTM and torch.nn.GRU call
        return torch.lstm(x, (fresh, fresh), *settings)[0]
    return torch.gru(x, fresh, *settings)[0]


SOFTMAX = Peer("torch sdpa", _heads_first, _softmax, same=False)
TRANSFORMERS, BOTH = ("transformers",), ("transformers", "mambapy")

PEERS: Mapping[str, tuple[Peer, ...]] = MappingProxyType(
    {
        "linear_scan": (
            Peer(
                "mambapy pscan",
                lambda inputs: dict(zip("ab", map(_own, inputs[0]), strict=True)),
                _pscan,
                ("mambapy",),
            ),
        ),
        "selective_scan": (
            Peer(
                "transformers sequential",
                _channels_first,
                partial(_selective_scan, use_mambapy=False),
                TRANSFORMERS,
                growth=2,  # of the gradients: each step's is a tensor of all steps
            ),
            Peer(
                "transformers mambapy",
                _channels_first,
                partial(_selective_scan, use_mambapy=True),
                BOTH,
            ),
        ),
        "linear_attention": (SOFTMAX,),
        "linear_attention decay": (SOFTMAX,),
        "linear_attention decays": (
            Peer("textbook, chunk 32", _textbook_parts, partial(_textbook, chunk=32), multiple=32),
            Peer("textbook, chunk 64", _textbook_parts, partial(_textbook, chunk=64), multiple=64),
            SOFTMAX,
        ),
        "linear_attention mamba2": (
            Peer("transformers mamba2", _mamba2_parts, _mamba2, TRANSFORMERS),
        ),
        "linear_attention mlstm": (
            Peer("transformers xlstm chunkwise", _mlstm_parts, _mlstm, TRANSFORMERS, multiple=64),
        ),
        "delta_rule decay": (
            Peer(
                "transformers chunk",
                _gated_delta_parts,
                partial(_gated_delta, form="chunk"),
                TRANSFORMERS,
            ),
            Peer(
                "transformers recurrent",
                _gated_delta_parts,
                partial(_gated_delta, form="recurrent"),
                TRANSFORMERS,
            ),
            SOFTMAX,
        ),
        "attention": (Peer("torch sdpa", _heads_first, partial(_softmax, scale=1.0)),),
        "short_conv": (Peer("torch conv1d + silu", _conv_parts, _conv),),
        **{
            f"cell_scan {kind}{wide}": (
                Peer(f"torch.nn.{kind.upper()}", _cell_parts, partial(_cell, kind=kind)),
            )
            for kind in ("lstm", "gru")
            for wide in ("", " wide")
        },
    }
)
