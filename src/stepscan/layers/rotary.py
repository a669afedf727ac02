"""Rotary position embedding (RoPE, arXiv:2104.09864).

    angle_i = position * base^(-2i / K)                          i = 0 .. K/2 - 1
    x_i, x_{i + K/2}  ->  x_i cos - x_{i + K/2} sin,  x_i sin + x_{i + K/2} cos

The product of a rotated query and a rotated key depends on the distance of their positions only.
Pairs are half a head apart, as in GPT-NeoX and Llama weights; the paper pairs neighbours, which is
the same up to an order of the channels.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotate(
    x: Float[Tensor, "B T H K"], positions: Int[Tensor, "#B T"], base: float = 10000.0
) -> Float[Tensor, "B T H K"]:
    """Rotate queries or keys to their positions."""
    if x.shape[-1] % 2:
        raise ValueError(f"rotate: want an even head size, got {x.shape[-1]}; change the heads")
    half = x.shape[-1] // 2
    exponent = torch.arange(half, device=x.device, dtype=torch.float64) / half
    # float64: positions grow without bound
    return turn(x, positions[..., None, None] * base**-exponent)


def turn(x: Float[Tensor, "*n K"], angle: Float[Tensor, "*#n A"]) -> Float[Tensor, "*n K"]:
    """Turn pairs of channels by A angles: the first 2 A channels, others stay as they are."""
    half = angle.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    a, b, rest = x.to(wide).split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1).to(x.dtype)
