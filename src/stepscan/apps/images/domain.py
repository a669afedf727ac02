"""Images read pixel after pixel: which class, after the last one."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch

from stepscan.apps.domain import Domain, Metric, Recipe, Scores
from stepscan.data.images import ImageSchema
from stepscan.data.views import spread
from stepscan.models import Classify, SequenceModel
from stepscan.models.heads import HeadConfig
from stepscan.train.evaluate import walk_outputs


class Images(Domain):
    """Images as sequences."""

    kind: ClassVar[str] = "images"
    metrics: tuple[Metric, ...] = (
        Metric("accuracy", "higher", "Share of held-out images whose class was found."),
    )
    recipe: Recipe = Recipe(
        layers="gated_delta_net*2", width=64, rows=16, length=256, learning_rate=3e-3
    )

    @property
    def schema(self) -> ImageSchema:
        """Classes and pixels."""
        assert isinstance(self.dataset.schema, ImageSchema)
        return self.dataset.schema

    @property
    def head(self) -> HeadConfig:
        """The class."""
        return Classify(classes=len(self.schema.classes))

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """Accuracy; images are read whole, a quick look reads fewer."""
        whole = self.dataset.parts[part]
        packed = whole if most is None else spread(whole, most)
        right, count = 0, 0
        for batch, logits in walk_outputs(model, packed, rows=64, length=self.schema.pixels):
            asked = batch.targets["label"] >= 0
            right += int((logits[asked].argmax(-1) == batch.targets["label"][asked]).sum())
            count += int(asked.sum())
        return {"accuracy": right / count}

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """The most frequent class, and a linear model of all pixels at once (ridge regression)."""
        (x, y), (test_x, test_y) = (self._whole(part) for part in ("train", "test"))
        frequent = int(y.bincount().argmax())
        yield "most frequent", {"accuracy": float((test_y == frequent).double().mean())}
        ones = torch.nn.functional.one_hot(y, len(self.schema.classes)).double()
        design, test = (torch.cat([z, torch.ones(len(z), 1)], 1).double() for z in (x, test_x))
        ridge = design.T @ design + 1.0 * torch.eye(design.shape[1])
        weights = torch.linalg.solve(ridge, design.T @ ones)
        yield "linear", {"accuracy": float(((test @ weights).argmax(1) == test_y).double().mean())}

    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """The first held-out images and the classes found."""
        x, y = self._whole("test")
        names = self.schema.classes
        rows: list[list[Any]] = []
        for image, label in zip(x[:6], y[:6].tolist(), strict=True):
            row: list[Any] = [names[label]]
            for model in models.values():
                with torch.no_grad():
                    chance = model(image[None, :, None])[0][0, -1].softmax(-1)
                row.append(f"{names[int(chance.argmax())]} {float(chance.max()):.0%}")
            rows.append(row)
        title = "The first held-out images"
        return [{"type": "table", "title": title, "columns": ["class", *models], "rows": rows}]

    def _whole(self, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        packed = self.dataset.parts[part]
        at = torch.arange(len(packed))
        reals = packed.inputs_at(at)[1]
        assert reals is not None
        label = packed.targets_at(at)["label"]
        return reals.view(-1, self.schema.pixels), label[label >= 0]
