"""Series that were never measured, made like those that were: see `models.koopman_vae`.

Windows of the training part, each series in its own scale, train the generator; two scores say how
far what it makes is from windows that it never saw (`analyze.synthetic`). Read them before you use
what it makes: a small generator, trained for a minute, is often told apart.
"""

import os
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.analyze.synthetic import discriminative, predictive
from stepscan.data.base import DataError, DataOptions, Dataset
from stepscan.data.open import open_dataset
from stepscan.data.panel import SeriesPacked
from stepscan.models.koopman_vae import KoopmanConfig, KoopmanVAE

if TYPE_CHECKING:
    import pandas as pd

ROWS, RATE, CLIP = 64, 2e-3, 1.0
LEAST = 40  # windows: fewer teach nothing, and judge nothing
MOST = 4000
JUDGED = 400


class Synthesis(NamedTuple):
    """What was made, and how good it is."""

    frame: "pd.DataFrame"
    """`series` (synthetic-1 ...), `step`, `value`, in the units of the series it is like."""
    discriminative: float
    """0: a network cannot tell it from real windows held out; 1/2: it always can."""
    predictive: float
    """Mean absolute error on real windows of a network that learned from what was made, in the
    scale of the series."""
    predictive_real: float
    """The same of one that learned from as many real windows: what there is to reach."""
    generator: KoopmanVAE


def synthesize(
    data: "str | os.PathLike[str] | pd.DataFrame | Dataset",
    count: int = 100,
    *,
    length: int = 24,
    steps: int = 1500,
    options: DataOptions | None = None,
    prior: str = "koopman",
    seed: int = 0,
) -> Synthesis:
    """Learn from the series of a file or a frame, and make new ones.

    Args:
        data: Series, as `fit` reads them.
        count: How many to make.
        length: Steps of each.
        steps: Of training, 64 windows each.
        options: How to read the data.
        prior: koopman, or gaussian to compare with.
        seed: Of weights, batches and what is made.

    Raises:
        DataError: the data are no series, or too short for windows of this length.
    """
    import pandas as pd  # noqa: PLC0415

    if count < 1 or length < 3 or steps < 1:
        raise ValueError(
            f"synthesize: want count >= 1, length >= 3 and steps >= 1, got {count}, {length}, "
            f"{steps}"
        )
    dataset = data if isinstance(data, Dataset) else open_dataset(data, options)  # type: ignore
    train, test = dataset.parts["train"], dataset.parts["test"]
    if not isinstance(train, SeriesPacked) or not isinstance(test, SeriesPacked):
        raise DataError(f"synthesize: want series, {dataset.name} holds {dataset.kind}")
    rng = torch.Generator().manual_seed(seed)
    x, series = windows(train, length, rng)
    held = windows(test, length, rng)[0][:JUDGED]
    for name, found in (("training", x), ("held-out", held)):
        if len(found) < LEAST:
            raise DataError(
                f"{dataset.name}: want {LEAST} windows of {length} steps in the {name} part, got "
                f"{len(found)}; take a smaller length, or give more data"
            )
    generator = train_generator(x, KoopmanConfig(channels=1, prior=prior), steps, seed)  # type: ignore
    made = generator.generate(max(count, len(held)), length, seed=seed)
    like = series[torch.randint(len(series), (len(made),), generator=rng)]
    panel = train.panel
    values = made[..., 0].double() * panel.scale[like][:, None] + panel.center[like][:, None]
    names = [f"synthetic-{i}" for i in range(1, count + 1)]
    frame = pd.DataFrame(
        {
            "series": [name for name in names for _ in range(length)],
            "step": list(range(length)) * count,
            "value": values[:count].flatten().tolist(),
        }
    )
    whole = x[~x.isnan().flatten(1).any(1)]
    real = held[~held.isnan().flatten(1).any(1)]
    scores = (
        discriminative(real, made, seed=seed),
        predictive(real, made, seed=seed),
        predictive(real, whole[: len(made)], seed=seed),
    )
    return Synthesis(frame, *scores, generator)


def windows(
    packed: SeriesPacked, length: int, rng: torch.Generator
) -> tuple[Float[Tensor, "M L 1"], Tensor]:
    """Windows at random places, each series in its own scale, and which series each is from."""
    at = torch.arange(len(packed))
    step = packed.begins.repeat_interleave(packed.lengths)
    fits = at - step + length <= packed.lengths.repeat_interleave(packed.lengths)
    places = at[fits]
    places = places[torch.randperm(len(places), generator=rng)[:MOST]]
    value = packed.value_at(places[:, None] + torch.arange(length))
    series = packed.series_at(places)
    center, scale = packed.panel.center[series][:, None], packed.panel.scale[series][:, None]
    scaled = ((value - center) / scale).float()[..., None]
    kept = ~scaled.isnan().all(1)[:, 0]
    return scaled[kept], series[kept]


def train_generator(
    x: Float[Tensor, "N T C"], config: KoopmanConfig, steps: int, seed: int
) -> KoopmanVAE:
    """Descend by Adam, the rate falling to nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KoopmanVAE(config)
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        at = torch.randint(len(x), (ROWS,), generator=rng)
        loss = model.losses(x[at], rng=rng).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return model.eval()
