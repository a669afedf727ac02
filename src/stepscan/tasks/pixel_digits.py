"""Handwritten digits read pixel by pixel: eight rows of eight, seventeen shades of grey.

read   0 0 5 13 9 1 0 0 | 0 0 13 15 ...     64 pixels of scikit-learn's digits
ask    . . .  . . . . . | ...          3     the digit, after the last pixel

A fixed third of the 1,797 images is kept for `held_out`.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.names import lookup
from stepscan.tasks.base import Batch, Task

TRAINED = 1198
"""Images to train on; the other 599 are the test."""
PARTS = {"train": slice(None, TRAINED), "test": slice(TRAINED, None)}


@dataclass(frozen=True, kw_only=True)
class PixelDigits(Task):
    """Config of the digits."""

    name: ClassVar[str] = "pixel_digits"
    ability: ClassVar[str] = "long range"
    source: ClassVar[str] = "Alpaydin & Kaynak 1998, doi:10.24432/C50P49; pixels: arXiv:1504.00941"

    repeat: int = 1
    """How often each pixel is said: more of it is a slower scan of the same image."""
    part: str = "train"
    """Which images: train or test."""

    def __post_init__(self) -> None:
        """Reject parts that do not exist."""
        lookup(PARTS, self.part, kind="part of pixel_digits")
        if self.repeat < 1:
            raise ValueError(f"pixel_digits: want repeat >= 1, got {self.repeat}")

    def longer(self, factor: int) -> "PixelDigits":
        """Each pixel more often."""
        return replace(self, repeat=self.repeat * factor)

    def held_out(self) -> "PixelDigits":
        """The images that training never shows."""
        return replace(self, part="test")

    @property
    def vocab(self) -> int:
        """Shades of grey."""
        return 17

    @property
    def answers(self) -> int:
        """Digits."""
        return 10

    @property
    def chance(self) -> float:
        """The most frequent digit, a 3."""
        return 183 / 1797

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples of this part."""
        pixels, digits = (x[PARTS[self.part]] for x in _images())
        some = torch.randint(len(pixels), (n,), generator=rng)
        input = pixels[some].repeat_interleave(self.repeat, 1)
        target, asked = torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
        target[:, -1] = digits[some]
        asked[:, -1] = True
        return Batch(input, target, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Find the image among all that there are."""
        known = {tuple(p): d for p, d in zip(*(x.tolist() for x in _images()), strict=True)}
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            out[-1] = known.get(tuple(row[:: self.repeat]), 0)
        return answer


@lru_cache(maxsize=1)
def _images() -> tuple[Int[Tensor, "M 64"], Int[Tensor, " M"]]:
    """All images and digits, in an order without authors: the file has them writer by writer."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415
    except ImportError as e:
        raise ImportError("pixel_digits: pip install 'stepscan[examples]' (scikit-learn)") from e
    data: Any = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(data.data).long()[order], torch.from_numpy(data.target).long()[order]
