"""Images as sequences of pixels, one class each, asked for after the last pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from stepscan.data.base import DataError, DataOptions, Dataset, Packed, Schema

HELD_OUT = (0.1, 0.2)  # valid, test


@dataclass(frozen=True, kw_only=True)
class ImageSchema(Schema):
    """How images become steps, and scores become classes."""

    kind: ClassVar[str] = "images"

    classes: tuple[str, ...]
    pixels: int
    """Steps of one image, row by row."""
    brightest: float
    """The value that becomes 1."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def reals(self) -> int:
        """Brightness."""
        return 1

    def encode(self, images: Shaped[np.ndarray, "M P"]) -> Packed:
        """These images one after the other, nothing asked."""
        return self._pack(images, np.full(len(images), -1))

    def _pack(self, images: Shaped[np.ndarray, "M P"], classes: Int[np.ndarray, " M"]) -> Packed:
        if images.ndim != 2 or images.shape[1] != self.pixels:
            raise DataError(
                f"want images of {self.pixels} pixels in rows, [M, {self.pixels}], "
                f"got shape {images.shape}"
            )
        starts = torch.zeros(images.shape, dtype=torch.bool)
        starts[:, :1] = True
        label = torch.full(images.shape, -1, dtype=torch.int32)
        label[:, -1] = torch.from_numpy(classes)
        bright = torch.from_numpy(images.astype(np.float32) / np.float32(self.brightest))
        return Packed(
            starts.flatten(), reals=bright.reshape(-1, 1), targets={"label": label.flatten()}
        )


def image_dataset(
    images: Float[np.ndarray, "M P"],
    classes: Int[np.ndarray, " M"],
    names: Sequence[str],
    options: DataOptions,
    *,
    name: str,
) -> Dataset:
    """Hold images out by a fixed shuffle, scale by the training part."""
    valid = HELD_OUT[0] if options.valid is None else options.valid
    test = HELD_OUT[1] if options.test is None else options.test
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise DataError(f"{name}: want fractions valid + test below 1, got {valid} + {test}")
    order = np.random.default_rng(0).permutation(len(images))
    cuts = [round(len(images) * (1 - valid - test)), round(len(images) * (1 - test))]
    pieces = dict(zip(("train", "valid", "test"), np.split(order, cuts), strict=True))
    schema = ImageSchema(
        classes=tuple(names),
        pixels=images.shape[1],
        brightest=float(images[pieces["train"]].max()) or 1.0,
    )
    said = (
        f"{name}   images  {len(images):,} of {schema.pixels} pixels   classes {len(names)}",
        "task        the class of an image, after its last pixel",
        "held out    a random part: "
        + "  ".join(f"{part} {len(rows):,}" for part, rows in pieces.items()),
    )
    parts = {part: schema._pack(images[rows], classes[rows]) for part, rows in pieces.items()}
    return Dataset(name=name, schema=schema, parts=parts, said=said)
