"""A trained model and what it was trained for: load it, ask it, stream through it, save it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from stepscan import state as states
from stepscan.apps import series as series_app
from stepscan.apps import text as text_app
from stepscan.apps.events import median_gap
from stepscan.apps.ranking import best, without
from stepscan.data.base import DataError, DataOptions, Dataset, Packed, Schema
from stepscan.data.batches import places
from stepscan.data.events import EventSchema
from stepscan.data.images import ImageSchema
from stepscan.data.interactions import InteractionSchema
from stepscan.data.open import open_dataset, read_schema
from stepscan.data.panel import SeriesPacked
from stepscan.data.series import SeriesSchema
from stepscan.data.tables import Table, read_table
from stepscan.data.text import TextSchema
from stepscan.generate import Sampling
from stepscan.models import Inputs, SequenceModel, load_folder, save_folder
from stepscan.models.folder import ModelCorruptError
from stepscan.names import did_you_mean
from stepscan.train.evaluate import walk_outputs

if TYPE_CHECKING:
    import pandas as pd

ROWS = 64  # sequences of a table read side by side
PIECE = 1024  # steps read at once: a long history costs time, not memory


class StreamState(NamedTuple):
    """Where a stream stands: the state of every layer, and the steps read so far."""

    layers: Any
    steps: int


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

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.network.parameters())
        layers = " ".join(c.name for c in self.network.config.mixers)
        return f"<stepscan.Model of {self.kind}: {layers}, {count:,} parameters>"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Model":
        """Read a model folder, or the `model` folder of a run.

        Raises:
            ValueError: there is none, or it is damaged or of another version; the message says which.
        """
        folder = Path(path)
        if (folder / "model").is_dir() and not (folder / "config.json").exists():
            folder = folder / "model"
        network, extra = load_folder(folder)
        try:
            schema = read_schema(extra["schema"])
            about = dict(extra.get("about", {}))
        except (KeyError, TypeError) as error:
            raise ModelCorruptError(f"{folder}: no schema of the data in it ({error})") from None
        if (network.config.tokens, network.config.reals) != (schema.tokens, schema.reals):
            raise ModelCorruptError(f"{folder}: the model and its schema do not fit together")
        return cls(network, schema, about)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a model folder, whole or not at all."""
        extra = {"schema": self.schema.to_dict(), "about": self.about}
        return save_folder(self.network, path, extra=extra)

    @torch.no_grad()
    def stream(self, data: Any, state: StreamState | None = None) -> tuple[Any, StreamState]:
        """Read some steps and return what the model says after each, cut anywhere.

        Args:
            data: Text or bytes; a list of activities or items; or `Inputs` as the network takes them
                ([1 T ...]), which any kind understands.
            state: What the call before returned; None begins a new sequence.

        Returns:
            Outputs of the head, [T ...], and the state to go on from. The answer does not depend on
            how a sequence is cut, except with a bpe tokenizer, whose tokens may span a cut.
        """
        inputs = self._inputs(data, state)
        layers = None if state is None else state.layers
        said: list[Any] = []
        length = (inputs.tokens if inputs.tokens is not None else inputs.reals).shape[1]  # type: ignore[union-attr]
        for start in range(0, max(length, 1), PIECE):
            piece = Inputs(*(None if x is None else x[:, start : start + PIECE] for x in inputs))
            outputs, layers = self.network(piece, layers)
            said.append(outputs)
        outputs = torch.utils._pytree.tree_map(lambda *parts: torch.cat(parts, 1)[0], *said)
        if state is None and isinstance(data, str | bytes):
            outputs = outputs[1:]  # said after the boundary, before any data
        return outputs, StreamState(layers, length + (0 if state is None else state.steps))

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
    ) -> str:
        """Text that goes on after the prompt; see `Sampling` for the options."""
        schema = self._wants(TextSchema, "generate")
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        return text_app.generate(
            self.network, schema, prompt, length=length, sampling=sampling, stop=stop, seed=seed
        )

    def predict(
        self,
        history: Sequence[Any],
        *,
        top: int = 3,
        times: Sequence[Any] | None = None,
        exclude_seen: bool = False,
    ) -> list[Prediction]:
        """The likeliest next events of a case, next items of a user, or classes of an image.

        Args:
            history: Activities or items in order, of a case or user never seen before or not; for
                images, the pixels.
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
        packed = self._history(history, times)
        outputs = self._last(packed)
        logits = outputs.logits if isinstance(schema, EventSchema) else outputs
        assert packed.tokens is not None
        seen = packed.tokens[:, 0].long() if exclude_seen else None
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
            raise ValueError(f"predict: a table of cases or users fits no model of {self.kind}")
        if top < 1:
            raise ValueError(f"predict: want top >= 1, got {top}")
        packed, names = schema.encode(_table(data))
        ends = packed.begins + packed.lengths - 1
        found: dict[str, list[Prediction]] = {}
        walked = walk_outputs(self.network, packed, rows=ROWS, length=PIECE)
        for at, (_, said) in zip(places(packed, rows=ROWS, length=PIECE), walked, strict=True):
            sequence = torch.searchsorted(packed.begins, at.clamp(min=0), right=True) - 1
            last = (at >= 0) & (at == ends[sequence])
            logits = said.logits if isinstance(schema, EventSchema) else said
            for which, scores in zip(sequence[last].tolist(), logits[last], strict=True):
                begin, end = int(packed.begins[which]), int(ends[which]) + 1
                assert packed.tokens is not None
                seen = packed.tokens[begin:end, 0].long() if exclude_seen else None
                found[str(names[which])] = self._named(scores, top, seen)
        return {str(name): found[str(name)] for name in names}

    def next_time(self, history: Sequence[Any], times: Sequence[Any]) -> float:
        """The median time to the next event of a case, in seconds (or plain units of time)."""
        schema = self._wants(EventSchema, "next_time")
        outputs = self._last(self._history(history, times))
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
            packed = data.parts["test"]
            assert isinstance(packed, SeriesPacked)
        else:
            packed = schema.encode(_table(data))
        ends = packed.ends()
        quantiles = series_app.forecast(self.network, schema, packed, ends)
        rows = []
        levels = self.network.config.head.quantiles  # type: ignore[attr-defined]
        for i, (end, table) in enumerate(zip(ends.tolist(), quantiles.tolist(), strict=True)):
            ahead = schema.times_ahead(int(packed.stamps_at(torch.tensor(end))))
            for time, values in zip(ahead, table, strict=True):
                said = {str(level): value for level, value in zip(levels, values, strict=True)}
                rows.append({"series": packed.names[i], "time": time, **said})
        return pd.DataFrame(rows)

    def _own_data(self) -> Dataset:
        """What the model was trained on, if it is still where it was."""
        try:
            options = self.about["options"]
            return open_dataset(self.about["source"], options and DataOptions(**_tuples(options)))
        except (KeyError, TypeError):
            raise DataError(f"{self!r} does not know its data: name a file") from None

    def _inputs(self, data: Any, state: StreamState | None) -> Inputs:
        if isinstance(data, Inputs):
            return data
        if isinstance(self.schema, TextSchema) and isinstance(data, str | bytes):
            ids = torch.from_numpy(self.schema.encode(data).astype("int64"))
            begin = [] if state is not None else [torch.tensor([self.schema.boundary])]
            return Inputs(tokens=torch.cat([*begin, ids])[None, :, None])
        if isinstance(self.schema, EventSchema | InteractionSchema):
            # A step before the first one, so that the pieces after it do not look like beginnings.
            lead = [] if state is None or not len(data) else [data[0]]
            packed = self._history([*lead, *data], None)
            tokens, reals = packed.inputs_at(torch.arange(len(lead), len(packed)))
            assert tokens is not None
            return Inputs(tokens[None], None if reals is None else reals[None])
        raise DataError(
            f"stream: a model of {self.kind} reads "
            f"{'text' if self.kind == 'text' else 'Inputs(tokens, reals)'}, got {type(data).__name__}"
        )

    def _history(self, history: Sequence[Any], times: Sequence[Any] | None) -> Packed:
        """One case or user; what was never seen is an error that names it."""
        schema = self.schema
        if isinstance(schema, EventSchema):
            known, what = set(schema.activities), "activity"
        elif isinstance(schema, InteractionSchema):
            known, what = set(schema.items), "item"
        else:
            raise ValueError(
                f"predict: this is a model of {self.kind}; see its README for how to ask"
            )
        for step in map(str, history):
            if step not in known:
                near = did_you_mean(step, known)
                raise DataError(
                    f"predict: {what} {step!r} was never seen in training ({len(known):,} were).{near}"
                )
        if isinstance(schema, EventSchema):
            return schema.prompt([str(step) for step in history], times)
        return schema.prompt([str(step) for step in history])

    @torch.no_grad()
    def _last(self, packed: Packed) -> Any:
        """What the model says after the last step of one sequence."""
        tokens, reals = packed.inputs_at(torch.arange(len(packed)))
        inputs = Inputs(*(None if x is None else x[None] for x in (tokens, reals)))
        state = None
        outputs: Any = None
        for start in range(0, len(packed), PIECE):
            piece = Inputs(*(None if x is None else x[:, start : start + PIECE] for x in inputs))
            outputs, state = self.network(piece, state)
        return outputs

    def _named(self, logits: Tensor, count: int, seen: Tensor | None) -> list[Prediction]:
        """The likeliest of what may be offered, with the probabilities among that."""
        schema = self.schema
        assert isinstance(schema, EventSchema | InteractionSchema)
        names = schema.activities if isinstance(schema, EventSchema) else schema.items
        offered = without(logits, seen)
        chance = offered.softmax(-1)
        return [Prediction(names[i - 1], float(chance[i])) for i in best(offered, count)]

    def _classes(self, schema: ImageSchema, pixels: Sequence[Any], count: int) -> list[Prediction]:
        values = torch.as_tensor(pixels, dtype=torch.float64).numpy()[None]
        chance = self._last(schema.encode(values))[0, -1].softmax(-1)
        best = chance.topk(min(count, len(chance))).indices.tolist()
        return [Prediction(schema.classes[i], float(chance[i])) for i in best]

    def _wants(self, schema: type[Any], verb: str) -> Any:
        if not isinstance(self.schema, schema):
            raise ValueError(f"{verb}: wants a model of {schema.kind}, this one is of {self.kind}")
        return self.schema


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def _table(data: "str | os.PathLike[str] | pd.DataFrame") -> Table:
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        return read_table(path)
    return Table(data.reset_index(drop=True), "the frame given")
