"""A model of images: it says their class."""

from typing import Any, ClassVar

import numpy as np
import torch

from stepscan.apps.model import Model
from stepscan.apps.next_step import Prediction
from stepscan.data.base import DataError, Schema
from stepscan.data.images import ImageSchema
from stepscan.models import Classify, Inputs
from stepscan.models.heads import HeadConfig


class ImageModel(Model):
    """What `fit` returns for images."""

    asks: ClassVar[tuple[str, ...]] = ("predict",)
    schema: ImageSchema

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Logits of its classes."""
        assert isinstance(schema, ImageSchema)
        return isinstance(head, Classify) and head.classes == len(schema.classes)

    def predict(self, pixels: Any, *, top: int = 3) -> list[Prediction]:
        """The likeliest classes of an image.

        Args:
            pixels: Their brightness, row by row.
            top: How many classes.
        """
        if top < 1:
            raise ValueError(f"predict: want top >= 1, got {top}")
        if not len(pixels):
            raise ValueError("predict: want at least one step of history, got none")
        schema = self.schema
        try:
            values = np.asarray(pixels, np.float64).reshape(1, -1)
        except (TypeError, ValueError):
            values = np.empty((1, 0))
        if values.shape[1] != schema.pixels or not np.isfinite(values).all():
            raise DataError(
                f"predict: want {schema.pixels} numbers from 0 to {schema.brightest:g}, one a "
                f"pixel, row by row; got {len(pixels)}, beginning with {pixels[0]!r:.40}"
            )
        tokens, reals = schema.encode(values).inputs_at(torch.arange(schema.pixels))
        assert tokens is None
        assert reals is not None
        chance = self.last(Inputs(reals=reals[None]))[0, -1].softmax(-1)
        best = chance.topk(min(top, len(chance))).indices.tolist()
        return [Prediction(schema.classes[i], float(chance[i])) for i in best]


MODEL = ImageModel
