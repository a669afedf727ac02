r"""A network that serves as a memory: what it answers, and the gradients that teach it.

It has L layers: x_1 = k, x_{l+1} = gelu(W_l x_l), without the gelu at the end; a layer with one
input more than it is given has a bias. With `norm`, f(k) = k + LN(W_L x_L), k its first V channels.

    loss       gradient at f(k), with e = f(k) - v
    l2         e
    dot        -v
    huber      e min(1, threshold / |e|)                    per token
    lp         p tanh(10 e) (e^2 + 1e-6)^((p - 1) / 2)      smooth p sign(e) |e|^(p - 1)
    kl         softmax(f(k)) - softmax(v)

    retention  link, for the layer's matrix A
    l2         A: with a decay, the penalty |W|^2 on the memory
    elastic    sign(A) max(|A| - sparsity, 0)
    q_norm     A / |A|_q^(q - 2)
    softmax    softmax of A over a layer's inputs: with a decay, KL between successive memories

A token's gradient in a layer is one product, of the layer's input and the error at its output: it
is written down here, so that the outer model is trained through it by first derivatives alone.
Sources: TTT (arXiv:2407.04620), Miras (arXiv:2504.13173), Muon (Jordan et al. 2024).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup

EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a memory learns: plain numbers and names (equations: here and in `test_time_scan.py`)."""

    loss: str = "l2"
    """What a write lowers: "l2", "dot", "huber", "lp" or "kl"."""
    power: float = 3.0
    """p of the loss "lp"."""
    retention: str = "l2"
    """What holds the memory in place: "l2", "elastic", "q_norm" or "softmax"."""
    norm_power: float = 4.0
    """q of the retention "q_norm"."""
    sparsity: float = 0.01
    """Threshold of the retention "elastic"."""
    orthogonalize: int = 0
    """Newton-Schulz steps on the momentum; 0 for none."""
    chunk: int = 1
    """Tokens whose gradients are taken at the same memory."""
    window: int = 1
    """Tokens whose losses one step lowers together."""

    def __post_init__(self) -> None:
        """Reject what has no meaning."""
        lookup(LOSSES, self.loss, kind="loss of test_time_scan")
        lookup(LINKS, self.retention, kind="retention of test_time_scan")
        if self.chunk < 1 or self.window < 1 or self.orthogonalize < 0:
            raise ValueError(
                "test_time_scan: want chunk and window at least 1 and orthogonalize at least 0, "
                f"got chunk={self.chunk}, window={self.window}, orthogonalize={self.orthogonalize}"
            )
        if self.power < 1 or self.norm_power < 1 or self.sparsity < 0:
            raise ValueError(
                "test_time_scan: want power and norm_power at least 1 and sparsity at least 0, got "
                f"power={self.power}, norm_power={self.norm_power}, sparsity={self.sparsity}"
            )


class Memory(NamedTuple):
    """What the tokens do not change: the layers' initial values, the norm, the rule."""

    init: tuple[Float[Tensor, "H _ _"], ...]
    norm: tuple[Float[Tensor, "H V"], Float[Tensor, "H V"]] | None
    rule: Rule


Layers = Sequence[Float[Tensor, "*N _ _"]]
Factors = Sequence[tuple[Float[Tensor, "*N E _"], Float[Tensor, "*N E _"]]]
"""A layer's gradient is, for each token, the product of its input and the error at its output."""


def newton_schulz(x: Float[Tensor, "*N I O"], steps: int = 5) -> Float[Tensor, "*N I O"]:
    """Singular values near 1, the singular vectors kept: Muon's quintic iteration."""
    flip = x.shape[-2] > x.shape[-1]
    x = x.mT if flip else x
    x = x / (x.square().sum((-2, -1), keepdim=True) + 1e-14).sqrt()
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if flip else x


# ---- losses: (prediction, v, threshold, rule) -> gradient at the prediction


def _l2(y: Tensor, v: Tensor, threshold: Tensor, rule: Rule) -> Tensor:
    return y - v


def _dot(y: Tensor, v: Tensor, threshold: Tensor, rule: Rule) -> Tensor:
    return -v.expand_as(y)


def _huber(y: Tensor, v: Tensor, threshold: Tensor, rule: Rule) -> Tensor:
    e = y - v
    length = (e.square().sum(-1, keepdim=True) + EPS**2).sqrt()
    return e * (threshold[..., None] / length).clamp(max=1.0)


def _lp(y: Tensor, v: Tensor, threshold: Tensor, rule: Rule) -> Tensor:
    e = y - v
    return rule.power * (10 * e).tanh() * (e.square() + EPS) ** ((rule.power - 1) / 2)


def _kl(y: Tensor, v: Tensor, threshold: Tensor, rule: Rule) -> Tensor:
    return y.softmax(-1) - v.softmax(-1)


LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor, Rule], Tensor]] = MappingProxyType(
    {"l2": _l2, "dot": _dot, "huber": _huber, "lp": _lp, "kl": _kl}
)

# ---- links: a layer's A -> its W


def _elastic(a: Tensor, rule: Rule) -> Tensor:
    return a.sign() * F.relu(a.abs() - rule.sparsity)


def _q_norm(a: Tensor, rule: Rule) -> Tensor:
    q = rule.norm_power
    size = (a.abs() ** q).sum((-2, -1), keepdim=True) + EPS**2  # |a|_q^q, and no 0 / 0
    return a / size ** ((q - 2) / q)


LINKS: Mapping[str, Callable[[Tensor, Rule], Tensor]] = MappingProxyType(
    {
        "l2": lambda a, rule: a,
        "elastic": _elastic,
        "q_norm": _q_norm,
        "softmax": lambda a, rule: a.softmax(-2),
    }
)

# ---- the memory


def unpacked(packed: Float[Tensor, "*N P"], memory: Memory) -> list[Tensor]:
    """The layers of a memory whose numbers are all in one dimension."""
    shapes = [w.shape[1:] for w in memory.init]
    parts = packed.split([rows * columns for rows, columns in shapes], -1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def pack(layers: Layers) -> Float[Tensor, "*N P"]:
    """The inverse of `unpacked`."""
    return torch.cat([w.flatten(-2) for w in layers], -1)


def linked(packed: Float[Tensor, "*N P"], memory: Memory) -> list[Tensor]:
    """The layers' W of their A."""
    link = LINKS[memory.rule.retention]
    return [link(a, memory.rule) for a in unpacked(packed, memory)]


def fitted(x: Float[Tensor, "*N K"], inputs: int) -> Float[Tensor, "*N I"]:
    """What a layer reads: a one for its bias, if it has one."""
    return F.pad(x, (0, 1), value=1.0) if inputs > x.shape[-1] else x


def between(z: Tensor) -> Tensor:
    """What stands between two layers."""
    return F.gelu(z, approximate="tanh")


def finish(x: Float[Tensor, "B H *C K"], z: Float[Tensor, "B H *C V"], memory: Memory) -> Tensor:
    """What stands after the last layer: the norm, added to the input."""
    if memory.norm is None:
        return z
    weight, bias = (p.reshape(len(p), *(1,) * (z.ndim - 3), -1) for p in memory.norm)
    return x[..., : z.shape[-1]] + weight * F.layer_norm(z, z.shape[-1:], eps=EPS) + bias


def read(q: Float[Tensor, "B H *C K"], layers: Layers, memory: Memory) -> Tensor:
    """f(q): all of the last dimension but one through one memory, [B H ... I O] each layer."""
    z = fitted(q, layers[0].shape[-2]) @ layers[0]
    for W in layers[1:]:
        z = fitted(between(z), W.shape[-2]) @ W
    return finish(q, z, memory)


def _gelu_slope(x: Tensor) -> Tensor:
    """The derivative of gelu in its tanh form."""
    c = math.sqrt(2 / math.pi)
    t = (c * (x + 0.044715 * x**3)).tanh()
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


def gradients(heard: Sequence[Tensor], layers: Layers, memory: Memory) -> Factors:
    """Each token's gradient, in each layer, at one memory; k, v, weight, threshold [B H E ...]."""
    k, v, weight, threshold = heard
    inputs, zs = [fitted(k, layers[0].shape[-2])], [fitted(k, layers[0].shape[-2]) @ layers[0]]
    for W in layers[1:]:
        inputs.append(fitted(between(zs[-1]), W.shape[-2]))
        zs.append(inputs[-1] @ W)
    z = zs[-1]
    y = finish(k, z, memory)
    error = LOSSES[memory.rule.loss](y, v, threshold, memory.rule) * weight[..., None]
    if memory.norm is not None:  # back through the norm
        mean = z.mean(-1, keepdim=True)
        scale = ((z - mean).square().mean(-1, keepdim=True) + EPS).rsqrt()
        unit, error = (z - mean) * scale, error * memory.norm[0][:, None]
        along = unit * (error * unit).mean(-1, keepdim=True)
        error = scale * (error - error.mean(-1, keepdim=True) - along)
    errors = [error]
    for W, z in zip(layers[:0:-1], zs[-2::-1], strict=True):
        errors.append((errors[-1] @ W.mT)[..., : z.shape[-1]] * _gelu_slope(z))
    return list(zip(inputs, reversed(errors), strict=True))


def orthogonal(packed: Float[Tensor, "*N P"], memory: Memory) -> Float[Tensor, "*N P"]:
    """Newton-Schulz, layer by layer."""
    steps = memory.rule.orthogonalize
    return pack([newton_schulz(S, steps) for S in unpacked(packed, memory)])
