"""A trained model and what it was trained for: load it, ask it, stream through it, save it."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan import state as states
from stepscan.apps import series as series_app
from stepscan.apps import text as text_app
from stepscan.apps.events import median_gap
from stepscan.apps.ranking import best, without
from stepscan.apps.reading import ASK, HANDED, read_piece
from stepscan.apps.runs import tuples
from stepscan.data.base import DataError, DataOptions, Dataset, Schema
from stepscan.data.batches import places
from stepscan.data.events import EventSchema
from stepscan.data.images import ImageSchema
from stepscan.data.interactions import InteractionSchema
from stepscan.data.open import open_dataset, read_schema
from stepscan.data.panel import SeriesPacked
from stepscan.data.series import SeriesSchema
from stepscan.data.tables import Table, read_table
from stepscan.data.text import TextSchema
from stepscan.data.tokens import TokenSchema
from stepscan.generate import Sampling
from stepscan.models import (
    Classify,
    Forecast,
    Inputs,
    NextEvent,
    NextToken,
    SequenceModel,
    load_folder,
    save_folder,
)
from stepscan.models.folder import ModelCorruptError
from stepscan.models.heads import HeadConfig
from stepscan.train.evaluate import walk_outputs

if TYPE_CHECKING:
    import pandas as pd

ROWS = 64  # sequences of a table read side by side
PIECE = 1024  # steps read at once: a long history costs time, not memory


class StreamState(NamedTuple):
    """Where a stream stands: the state of every layer, and the steps read so far."""

    layers: Any
    steps: int
    memory: Any = None
    """What the next inputs look back at: the time of the last event, a season of values."""


class Prediction(NamedTuple):
    """A likely next event, item or class."""

    what: str
    probability: float


class Model:
    """What `fit` returns and `load` reads. `kind` says what it understands: text, series, events,
    interactions or images.
    """

    def __init__(
        self, network: SequenceModel, schema: Schema, about: Mapping[str, Any] | None = None
    ) -> None:
        self.network = network.eval()
        """The model itself: `network(inputs, state, resets) -> (outputs, state)`."""
        self.schema = schema
        """How data becomes inputs, and outputs become answers."""
        self.about = dict(about or {})
        """Where it came from: data, command, scores."""

    @property
    def kind(self) -> str:
        """The kind of data."""
        return self.schema.kind

    @property
    def reach(self) -> int:
        """Steps that tables are read at once in, and that attention looks back beyond them, as in
        training: see `Domain.reach`. `stream`, `predict` and `generate` let it look at all.
        """
        reach = self.about.get("reach")
        return reach if isinstance(reach, int) and 1 <= reach <= 1 << 20 else PIECE

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.network.parameters())
        config = self.network.config
        layers = " ".join(c.name for c in config.mixers)
        facts = [f"{self.kind}: {layers}, width {config.width}, {count:,} parameters"]
        if "data" in self.about:
            facts.append(f"trained on {self.about['data']}")
        scores = self.about.get("test")
        if isinstance(scores, Mapping):
            facts += [f"{name} {value:.3f}" for name, value in list(scores.items())[:1]]
        return f"<stepscan.Model of {', '.join(facts)}; ask it with {ASK[self.kind]}>"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Model":
        """Read a model folder, or the `model` folder of a run.

        Raises:
            ValueError: there is none, or it is damaged or of another version; it says which.
        """
        folder = Path(path)
        if (folder / "model").is_dir() and not (folder / "config.json").exists():
            folder = folder / "model"
        network, extra = load_folder(folder)
        try:
            schema = read_schema(extra["schema"])
            about = dict(extra.get("about", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelCorruptError(f"{folder}: no schema of the data in it ({error})") from None
        config = network.config
        same = (config.tokens, config.reals) == (schema.tokens, schema.reals)
        if not same or not _answers(config.head, schema):
            raise ModelCorruptError(f"{folder}: the model and its schema do not fit together")
        return cls(network, schema, about)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a model folder, whole or not at all."""
        extra = {"schema": self.schema.to_dict(), "about": self.about}
        return save_folder(self.network, path, extra=extra)

    @torch.no_grad()
    def stream(
        self, data: Any, state: StreamState | None = None, *, times: Iterable[Any] | None = None
    ) -> tuple[Any, StreamState]:
        """Read some steps and return what the model says after each, cut anywhere.

        Args:
            data: Text or bytes; a list of activities or items, or a frame with their columns; a
                frame of one series, in order of time; or `Inputs` as the network takes them
                ([1 T ...]), which any kind understands.
            state: What the call before returned; None begins a new sequence.
            times: Of events, if `data` is a list; with every piece of a case, or with none.

        Returns:
            Outputs of the head, [T ...], and the state to go on from. Of a frame of a series they
            are quantiles in real units, one row per step of time up to the last value given; rows
            after it tell what is known ahead, and may come again with their values. The answer does
            not depend on how a sequence is cut, except with a bpe tokenizer, whose tokens may span
            a cut, and except for what is known ahead, which has to be there when it is looked at.
        """
        if not self.network.causal:
            raise ValueError(
                "stream: a layer of this model reads both ways, so that what it says depends on "
                "where a stream is cut; take causal mixers (`stepscan mixers`), or `predict`"
            )
        layers, steps, memory = (None, 0, None) if state is None else state
        piece = read_piece(
            self.schema, data, stamps=times, memory=memory, begun=state is not None and steps > 0
        )
        said: list[Any] = []
        length = _length(piece.inputs)
        for part in _parts(piece.inputs):
            outputs, layers = self.network(part, layers)
            said.append(outputs)
        outputs = pytree.tree_map(lambda *parts: torch.cat(parts, 1)[0], *said)
        return piece.finish(outputs), StreamState(layers, length + steps, piece.memory)

    def nbytes(self, state: StreamState) -> int:
        """Bytes that a stream has to keep."""
        return states.nbytes(state.layers)

    def generate(
        self,
        prompt: str = "",
        *,
        length: int = 400,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: str | None = None,
        seed: int = 0,
        dtype: str = "fp32",
    ) -> str:
        """Text that goes on after the prompt; see `Sampling` for the options.

        `dtype="bf16"` or `"int8"` rounds the weights for new tokens: faster, and nearly as good.
        """
        schema = self._wants(TextSchema, "generate", TokenSchema)
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        return text_app.generate(
            self.network,
            schema,
            prompt,
            length=length,
            sampling=sampling,
            stop=stop,
            seed=seed,
            dtype=dtype,
        )

    def predict(
        self,
        history: "Sequence[Any] | pd.DataFrame",
        *,
        top: int = 3,
        times: Iterable[Any] | None = None,
        exclude_seen: bool = False,
    ) -> list[Prediction]:
        """The likeliest next events of a case, next items of a user, or classes of an image.

        Args:
            history: Activities or items in order, of a case or user never seen before or not, as a
                list, an array or a frame with the columns of the training data; for images, the
                pixels.
            top: How many.
            times: Of the events, if they are known.
            exclude_seen: Do not offer items of the history.
        """
        if top < 1:
            raise ValueError(f"predict: want top >= 1, got {top}")
        if not len(history):
            raise ValueError("predict: want at least one step of history, got none")
        schema = self.schema
        if isinstance(schema, ImageSchema):
            return self._classes(schema, history, top)
        if not isinstance(schema, EventSchema | InteractionSchema):
            raise ValueError(f"predict: this model is of {self.kind}; ask it with {ASK[self.kind]}")
        inputs = read_piece(schema, history, stamps=times).inputs
        outputs = self._last(inputs)
        logits = outputs.logits if isinstance(schema, EventSchema) else outputs
        assert inputs.tokens is not None
        seen = inputs.tokens[0, :, 0] if exclude_seen else None
        return self._named(logits[0, -1], top, seen)

    def predict_table(
        self,
        data: "str | os.PathLike[str] | pd.DataFrame",
        *,
        top: int = 3,
        exclude_seen: bool = False,
    ) -> dict[str, list[Prediction]]:
        """The likeliest next events or items of every case or user in a table, by its name."""
        schema = self.schema
        if not isinstance(schema, EventSchema | InteractionSchema):
            raise ValueError(f"predict: this model is of {self.kind}; ask it with {ASK[self.kind]}")
        if top < 1:
            raise ValueError(f"predict: want top >= 1, got {top}")
        packed, names = schema.encode(self._table(data))
        ends = packed.begins + packed.lengths - 1
        found: dict[str, list[Prediction]] = {}
        reach = self.reach
        walked = walk_outputs(self.network, packed, rows=ROWS, length=reach, slots=reach)
        for at, (_, said) in zip(places(packed, rows=ROWS, length=reach), walked, strict=True):
            sequence = torch.searchsorted(packed.begins, at.clamp(min=0), right=True) - 1
            last = (at >= 0) & (at == ends[sequence])
            logits = said.logits if isinstance(schema, EventSchema) else said
            for which, scores in zip(sequence[last].tolist(), logits[last], strict=True):
                begin, end = int(packed.begins[which]), int(ends[which]) + 1
                assert packed.tokens is not None
                seen = packed.tokens[begin:end, 0].long() if exclude_seen else None
                found[str(names[which])] = self._named(scores, top, seen)
        return {str(name): found[str(name)] for name in names}

    def next_time(self, history: Sequence[Any], times: Iterable[Any]) -> float:
        """The median time to the next event of a case, in seconds (or plain units of time)."""
        schema = self._wants(EventSchema, "next_time")
        if not len(history):
            raise ValueError("next_time: want at least one event of history, got none")
        outputs = self._last(read_piece(schema, history, stamps=times).inputs)
        return schema.unit * float(median_gap(outputs.gap[0, -1:]))

    def forecast(
        self, data: "str | os.PathLike[str] | pd.DataFrame | Dataset | None" = None
    ) -> "pd.DataFrame":
        """Quantiles of the next values of every series in a table, after its last value.

        Args:
            data: A frame or a file with the columns that the model was trained on; rows after the
                last value tell the covariates that are known ahead, and new series are welcome.
                Or an opened data set. None is the data that the model was trained on.

        Returns:
            One row per series and step: `series`, `time`, and a column per quantile such as `0.5`.
        """
        import pandas as pd  # noqa: PLC0415

        schema = self._wants(SeriesSchema, "forecast")
        if data is None:
            data = self._own_data()
        if isinstance(data, Dataset):
            if data.schema != schema:
                raise DataError(
                    f"forecast: {data.name} was read in another way than the model's data; give a "
                    "file, or nothing to forecast the data it was trained on"
                )
            packed = data.parts["test"]
            assert isinstance(packed, SeriesPacked)
        else:
            packed = schema.encode(self._table(data))
        ends = packed.ends()
        quantiles = series_app.forecast(self.network, schema, packed, ends, reach=self.reach)
        rows = []
        levels = self.network.config.head.quantiles  # type: ignore[attr-defined]
        for end, table in zip(ends.tolist(), quantiles.tolist(), strict=True):
            name = packed.names[int(packed.series_at(torch.tensor(end)))]
            ahead = schema.times_ahead(int(packed.stamps_at(torch.tensor(end))))
            for time, values in zip(ahead, table, strict=True):
                said = {str(level): value for level, value in zip(levels, values, strict=True)}
                rows.append({"series": name, "time": time, **said})
        return pd.DataFrame(rows)

    def _own_data(self) -> Dataset:
        """What the model was trained on, if it is still where it was."""
        try:
            options = self.about["options"]
            return open_dataset(self.about["source"], options and DataOptions(**tuples(options)))
        except (KeyError, TypeError):
            raise DataError(f"{self!r} does not know its data: name a file") from None

    @torch.no_grad()
    def _last(self, inputs: Inputs) -> Any:
        """What the model says after the last step of one sequence."""
        state, outputs = None, None
        for part in _parts(inputs):
            outputs, state = self.network(part, state)
        return outputs

    def _table(self, data: "str | os.PathLike[str] | pd.DataFrame") -> Table:
        """A table, where the same strings mean missing as in training."""
        missing = tuple((self.about.get("options") or {}).get("missing", ()))
        if isinstance(data, str | os.PathLike):
            path = Path(data)
            if not path.is_file():
                raise DataError(f"{path}: no such file")
            if not path.stat().st_size:
                raise DataError(f"{path}: the file is empty")
            return read_table(path, missing)
        return Table(data.reset_index(drop=True), HANDED, missing)

    def _named(self, logits: Tensor, count: int, seen: Tensor | None) -> list[Prediction]:
        """The likeliest of what may be offered, with the probabilities among that."""
        schema = self.schema
        assert isinstance(schema, EventSchema | InteractionSchema)
        names = schema.activities if isinstance(schema, EventSchema) else schema.items
        offered = without(logits, seen)
        chance = offered.softmax(-1)
        return [Prediction(names[i - 1], float(chance[i])) for i in best(offered, count)]

    def _classes(self, schema: ImageSchema, pixels: Any, count: int) -> list[Prediction]:
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
        chance = self._last(Inputs(reals=reals[None]))[0, -1].softmax(-1)
        best = chance.topk(min(count, len(chance))).indices.tolist()
        return [Prediction(schema.classes[i], float(chance[i])) for i in best]

    def _wants(self, schema: type[Any], verb: str, *others: type[Any]) -> Any:
        if not isinstance(self.schema, (schema, *others)):
            raise ValueError(
                f"{verb}: wants a model of {schema.kind}, this one is of {self.kind}; ask it with "
                f"{ASK[self.kind]}"
            )
        return self.schema


def _answers(head: HeadConfig, schema: Schema) -> bool:
    """Whether the head says what such data asks for."""
    match schema:
        case TextSchema() | TokenSchema() | InteractionSchema():
            return isinstance(head, NextToken) and head.vocab == schema.tokens[0]
        case EventSchema():
            return isinstance(head, NextEvent) and head.vocab == schema.tokens[0]
        case SeriesSchema():
            return isinstance(head, Forecast) and head.horizon == schema.horizon
        case ImageSchema():
            return isinstance(head, Classify) and head.classes == len(schema.classes)
    return False


def _length(inputs: Inputs) -> int:
    return next(x.shape[1] for x in inputs if x is not None)


def _parts(inputs: Inputs) -> Iterator[Inputs]:
    """Stretches of bounded memory; at least one."""
    for start in range(0, max(_length(inputs), 1), PIECE):
        yield Inputs(*(None if x is None else x[:, start : start + PIECE] for x in inputs))
