"""More examples of a rare class, made by a generator that has learned from its training part alone.

The generator (`models.koopman_vae`) reads the sequences of one class in the training part, each
channel in the scale of the schema, and draws new ones: a path of its prior, decoded, and noise of
the size of what it left unexplained, channel by channel. What it makes is held against the real
sequences of the class that were held out: if it lies nearer to the training sequences than they do,
or is as good as one of them, it was learned by heart and is refused (`analyze.synthetic.nearest`).

Whether this helps is to be measured: see docs/classification.md.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.analyze.synthetic import Nearest, nearest
from stepscan.apps.series.synthesis import train_generator
from stepscan.data.base import PARTS, DataError, DataOptions
from stepscan.data.files import read_table
from stepscan.data.frames import frame_table, is_frame
from stepscan.data.held_out import hold_out
from stepscan.data.infer import labelled_columns
from stepscan.data.labelled import LabelledSchema
from stepscan.data.labelled_dataset import labelled_dataset
from stepscan.data.sequences import Sequences, from_table
from stepscan.models.koopman_vae import KoopmanConfig, KoopmanVAE

if TYPE_CHECKING:
    import pandas as pd

LEAST, JUDGES = 8, 5  # sequences of the class in training, and held out
STEPS = 300  # of training: after more, small classes are learned by heart
BETA = 1.0  # weight of the divergence: 100 times that for windows of long series, which are many
PART = "split"


class More(NamedTuple):
    """A table with further sequences of one class, and how near they are to real ones."""

    frame: "pd.DataFrame"
    """Every labelled sequence of the table, with a column `split` that keeps it in the part it was
    in, and the made-up ones (synthetic-1 ...) in the training part; the time counts steps."""
    label: str
    """The class."""
    count: int
    """How many were made."""
    learned_from: int
    """Its training sequences."""
    nearest: Nearest


def more_of(
    data: "str | os.PathLike[str] | pd.DataFrame",
    label: str | None = None,
    count: int | None = None,
    *,
    steps: int = STEPS,
    options: DataOptions | None = None,
    seed: int = 0,
) -> More:
    """Learn what sequences of a class look like, and make more of them for training.

    Args:
        data: A table of labelled sequences with channels of numbers, as `fit` reads it.
        label: The class; None is the rarest.
        count: How many; None makes the class as frequent in training as the most frequent one.
        steps: Of training, 64 sequences each.
        options: How to read the data.
        seed: Of weights, batches and what is made.

    Raises:
        DataError: there are no classes, no such class, or too few of it.
        ValueError: what was made is too near to what it was learned from.
    """
    options = options or DataOptions()
    if is_frame(data):
        table = frame_table(data, missing=options.missing)
    else:
        path = Path(data)  # type: ignore[arg-type]  # not a frame
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        table = read_table(path, options.missing)
    columns, _ = labelled_columns(table, options)
    found = from_table(table, columns)
    schema = labelled_dataset(found, options, name=table.name, columns=columns).schema
    assert isinstance(schema, LabelledSchema)
    if schema.answer != "class" or found.words or schema.patch > 1:
        raise DataError(
            f"{table.name}: want sequences of numbers with classes, one sample a step, to make "
            "more of"
        )
    assert found.answers is not None
    found = found.take(np.array([i for i, a in enumerate(found.answers) if a is not None]))
    answers = [str(a) for a in found.answers]  # type: ignore[union-attr]
    part = hold_out(found, answers, options, table.name)[0]
    often = {c: answers_in(answers, part, c) for c in schema.classes}
    label = min(schema.classes, key=lambda c: often[c]) if label is None else label
    if label not in often:
        raise DataError(
            f'{table.name}: no class "{label}" in training; classes: {", ".join(schema.classes)}'
        )
    mine = np.array([a == label for a in answers])
    train, held = (
        found.take(np.flatnonzero(mine & (part == 0))),
        found.take(np.flatnonzero(mine & (part > 0))),
    )
    if len(train) < LEAST or len(held) < JUDGES:
        raise DataError(
            f'{table.name}: class "{label}" has {len(train)} sequences in training and {len(held)} '
            f"held out; want at least {LEAST} to learn from and {JUDGES} to judge by"
        )
    count = max(often.values()) - often[label] if count is None else count
    if count < 1 or steps < 1:
        raise ValueError(f"want at least 1 sequence and 1 step, got {count} and {steps}")
    names = schema.channels
    center, scale = torch.tensor(schema.center), torch.tensor(schema.scale)
    real = (padded(train, names) - center) / scale
    generator = train_generator(real, KoopmanConfig(channels=len(names), beta=BETA), steps, seed)
    made = sample(generator, real, train.lengths, count, seed)
    size = max(made.shape[1], int(held.lengths.max()))
    unseen = (padded(held, names) - center) / scale
    judged = nearest(*(_longer(x, size) for x in (made, real, unseen)))
    if not judged.sound:
        raise ValueError(
            f'{table.name}: what was made of "{label}" is too near to its training sequences '
            f"({judged.copies} copies; median distance {judged.made:.3g}, of held-out sequences "
            f"{judged.held_out:.3g}, p {judged.p:.2g}); take fewer steps, or more sequences"
        )
    frame = _frame(found, made * scale + center, part, label, schema, answers)
    return More(frame, label, count, len(train), judged)


def answers_in(answers: Sequence[str], part: np.ndarray, label: str) -> int:
    """Training sequences of a class."""
    return int(sum(a == label and p == 0 for a, p in zip(answers, part, strict=True)))


def padded(found: Sequences, names: Sequence[str]) -> Float[Tensor, "S T C"]:
    """The channels of sequences, with NaN after their ends."""
    size = int(found.lengths.max())
    x = torch.full((len(found), size, len(names)), torch.nan)
    for i, (begin, length) in enumerate(zip(found.begins, found.lengths, strict=True)):
        for c, name in enumerate(names):
            x[i, :length, c] = torch.from_numpy(found.channels[name][begin : begin + length])
    return x


@torch.no_grad()
def sample(
    generator: KoopmanVAE, real: Float[Tensor, "N T C"], lengths: np.ndarray, count: int, seed: int
) -> Float[Tensor, "M T C"]:
    """New sequences, as long as real ones drawn at random; NaN after their ends.

    A decoder says the mean. The noise around it is of the size of what it leaves unexplained of the
    real ones, so that what is made is no smoother than they are.
    """
    rng = torch.Generator().manual_seed(seed)
    mean = generator.decode(generator.encode(real, rng=rng).mean)
    noise = (mean - real).square().nanmean((0, 1)).sqrt()
    made = generator.generate(count, real.shape[1], seed=seed)
    made = made + noise * torch.randn(made.shape, generator=rng)
    drawn = torch.from_numpy(lengths)[torch.randint(len(lengths), (count,), generator=rng)]
    over = torch.arange(real.shape[1]) >= drawn[:, None]
    return made.masked_fill(over[..., None], torch.nan)


def _longer(x: Float[Tensor, "S T C"], size: int) -> Float[Tensor, "S U C"]:
    return torch.nn.functional.pad(x, (0, 0, 0, size - x.shape[1]), value=torch.nan)


def _frame(
    found: Sequences,
    made: Float[Tensor, "M T C"],
    part: np.ndarray,
    label: str,
    schema: LabelledSchema,
    answers: Sequence[str],
) -> "pd.DataFrame":
    """Real and made-up sequences, one row a step."""
    import pandas as pd  # noqa: PLC0415

    kept = ~made.isnan().all(-1)
    lengths = [*found.lengths.tolist(), *kept.sum(1).tolist()]
    names = [*found.names, *(f"synthetic-{i}" for i in range(1, len(made) + 1))]
    values = made[kept].double().numpy()
    columns = {
        schema.id or "id": np.repeat(names, lengths),
        schema.time or "step": np.concatenate([np.arange(n) for n in lengths]),
        **{
            name: np.concatenate([found.channels[name], values[:, i]])
            for i, name in enumerate(schema.channels)
        },
        schema.label: np.repeat([*answers, *[label] * len(made)], lengths),
        PART: np.repeat([*(PARTS[p] for p in part), *["train"] * len(made)], lengths),
    }
    return pd.DataFrame(columns)
