"""What the mixers of the delta family read off their input: queries, keys, values, step sizes.

    q, k, v = SiLU(conv(W x))                   a causal window per channel; k, v once per write
    q = unit(q) / sqrt(K)
    learned:  k = unit(k),  beta = (1 - high) + (high - low) sigmoid(W_b x)
    kaczmarz: k as it is,   beta = (the same, W_b with a bias) / (|k|^2 + 1e-6)

A write multiplies what the memory holds along k by 1 - beta |k|^2, which so lies in (low, high):
(0, 1) as published first, (-1, 1) for tracking of states. `kaczmarz` takes the step that would
solve S^T k = v for any length of k, as in Kaczmarz' method.
Heads may share queries and keys, `key_heads` of them: head h meets h // (H / key_heads), as in
Qwen3-Next.
Sources: DeltaNet (arXiv:2406.06484), negative eigenvalues (arXiv:2411.12537), several writes per
token as in DeltaProduct (arXiv:2502.10297), Kaczmarz linear attention (KLA).
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.convolution import ShortConv
from stepscan.layers.projection import Linear
from stepscan.names import lookup

STEP_SIZES = ("learned", "kaczmarz")


class Inputs(NamedTuple):
    """Arguments of `delta_rule`; n is there only if there are several writes per token."""

    q: Float[Tensor, "B T H K"]
    k: Float[Tensor, "B T *n H K"]
    v: Float[Tensor, "B T *n H V"]
    beta: Float[Tensor, "B T *n H"]


class DeltaInputs(nn.Module):
    """See the module docstring. `keys` and `values` are widths over all heads of their kind."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        keys: int,
        values: int,
        window: int,
        eig_range: tuple[float, float] = (0.0, 1.0),
        n_householder: int = 1,
        step_size: str = "learned",
        key_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.key_heads = heads if key_heads is None else key_heads
        if heads < 1 or keys < 1 or values < 1 or values % heads:
            raise ValueError(f"heads={heads} must divide the keys={keys} and the values={values}")
        if self.key_heads < 1 or heads % self.key_heads or keys % self.key_heads:
            raise ValueError(
                f"key_heads={self.key_heads} must divide heads={heads} and the keys={keys}"
            )
        low, high = eig_range
        if not -1 <= low < high <= 1:
            raise ValueError(f"eig_range: want -1 <= low < high <= 1, got {tuple(eig_range)}")
        if n_householder < 1:
            raise ValueError(f"n_householder: want 1 or more writes a token, got {n_householder}")
        lookup(dict.fromkeys(STEP_SIZES), step_size, kind="step_size")
        self.heads, self.writes, self.eig_range = heads, n_householder, (low, high)
        self.kaczmarz = step_size == "kaczmarz"
        self.sizes = keys, n_householder * keys, n_householder * values
        self.qkv = Linear(width, sum(self.sizes), bias=False)
        self.conv = ShortConv(sum(self.sizes), window, bias=False)
        self.strength = Linear(width, n_householder * heads, bias=self.kaczmarz)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "B window E"]:
        """The convolution's: no inputs yet."""
        return self.conv.init_state(batch, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Float[Tensor, "B window E"] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Inputs, Float[Tensor, "B window E"]]:
        """Project, convolve, normalise."""
        qkv, state = self.conv(self.qkv(x), state, resets)
        q, k, v = qkv.split(self.sizes, -1)
        q = rearrange(q, "b t (h k) -> b t h k", h=self.key_heads)
        k, v, logit = (
            rearrange(y, "b t (n h k) -> b t n h k", n=self.writes, h=heads)
            for y, heads in ((k, self.key_heads), (v, self.heads), (self.strength(x), self.heads))
        )
        if self.key_heads < self.heads:
            q, k = (y.repeat_interleave(self.heads // self.key_heads, -2) for y in (q, k))
        low, high = self.eig_range
        beta = (1 - high) + (high - low) * torch.sigmoid(logit.squeeze(-1))
        if self.kaczmarz:
            wide = torch.promote_types(k.dtype, torch.float32)
            beta = beta / (k.to(wide).square().sum(-1) + 1e-6)
        else:
            k = unit(k)
        writes = (k, v, beta) if self.writes > 1 else (k[:, :, 0], v[:, :, 0], beta[:, :, 0])
        return Inputs(unit(q) * q.shape[-1] ** -0.5, *writes), state


def unit(x: Float[Tensor, "*N K"]) -> Float[Tensor, "*N K"]:
    """x / sqrt(|x|^2 + 1e-6): length 1, and gradients that stay bounded at x = 0."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (wide.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)
