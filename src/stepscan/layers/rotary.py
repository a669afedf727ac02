"""Rotary position embedding (RoPE, arXiv:2104.09864).

    angle_i = position * base^(-2i / K)                          i = 0 .. K/2 - 1
    x_i, x_{i + K/2}  ->  x_i cos - x_{i + K/2} sin,  x_i sin + x_{i + K/2} cos

The product of a rotated query and a rotated key depends on the distance of their positions only.
Pairs are half a head apart, as in GPT-NeoX and Llama weights; the paper pairs neighbours, which is
the same up to an order of the channels.

For texts longer than those of training the slow rotations can be slowed further by a factor
(Llama 3.1, arXiv:2407.21783, which gives the aim; the rule with its numbers is from its code):

    turns = original / wavelength_i            turns within the length of training
    angle_i /= factor                          if turns < low;   as it was if turns > high
    angle_i *= (1 - s) / factor + s            between them, s = (turns - low) / (high - low)
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Stretch(NamedTuple):
    """How rotations are slowed for longer texts, see above."""

    factor: float
    low: float
    high: float
    original: float


def rotate(
    x: Float[Tensor, "B T H K"],
    positions: Int[Tensor, "#B T"],
    base: float = 10000.0,
    *,
    size: int | None = None,
    stretch: Stretch | None = None,
) -> Float[Tensor, "B T H K"]:
    """Rotate queries or keys to their positions; only the first `size` channels, if it is given."""
    size = x.shape[-1] if size is None else size
    if size % 2:
        raise ValueError(f"rotate: want an even head size, got {size}; change the heads")
    exponent = torch.arange(size // 2, device=x.device, dtype=torch.float64) / (size // 2)
    # float64: positions grow without bound
    speed = base**-exponent
    if stretch is not None:
        turns = stretch.original * speed / (2 * math.pi)
        kept = ((turns - stretch.low) / (stretch.high - stretch.low)).clamp(0, 1)
        speed = speed * ((1 - kept) / stretch.factor + kept)
    return turn(x, positions[..., None, None] * speed)


def turn(x: Float[Tensor, "*n K"], angle: Float[Tensor, "*#n A"]) -> Float[Tensor, "*n K"]:
    """Turn pairs of channels by A angles: the first 2 A channels, others stay as they are."""
    half = angle.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    a, b, rest = x.to(wide).split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1).to(x.dtype)
