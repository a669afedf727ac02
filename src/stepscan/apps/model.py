"""A trained model and what it was trained for: load it, stream through it, save it.

What else it can be asked depends on the kind of data: the `model.py` of each kind beside this file.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch.utils import _pytree as pytree

from stepscan import state as states
from stepscan.apps.reading import HANDED, read_piece
from stepscan.apps.runs import tuples
from stepscan.apps.sources import moved
from stepscan.data.base import DataError, DataOptions, Dataset, Schema
from stepscan.data.files import read_table
from stepscan.data.frames import frame_table
from stepscan.data.open import open_dataset, read_schema
from stepscan.data.tables import Table
from stepscan.models import Inputs, SequenceModel, load_folder, save_folder
from stepscan.models.folder import ModelCorruptError
from stepscan.models.heads import HeadConfig
from stepscan.names import lookup

if TYPE_CHECKING:
    import pandas as pd

PIECE = 1024  # steps read at once: a long history costs time, not memory
HOMES = {  # of the model of each kind of data
    "text": "text",
    "tokens": "text",
    "series": "series",
    "events": "events",
    "interactions": "interactions",
    "item_texts": "item_texts",
    "responses": "responses",
    "labelled": "labelled",
}


class StreamState(NamedTuple):
    """Where a stream stands: the state of every layer, and the steps read so far."""

    layers: Any
    steps: int
    memory: Any = None
    """What the next inputs look back at: the time of the last event, a season of values."""


class WrongKindError(AttributeError, ValueError):
    """A model was asked what another kind of model answers."""


class Model:
    """What `fit` returns and `load` reads: the model of its kind of data, see `HOMES`."""

    asks: ClassVar[tuple[str, ...]] = ("stream",)
    """The methods that this kind answers."""

    def __new__(cls, *args: Any, **options: Any) -> "Model":
        """The class of the schema's kind; of a copy, which gives no schema, its own."""
        schema = options.get("schema", args[1] if len(args) > 1 else None)
        return object.__new__(class_of(schema.kind) if cls is Model and schema else cls)

    def __init__(
        self, network: SequenceModel, schema: Schema, about: Mapping[str, Any] | None = None
    ) -> None:
        self.network = network.eval()
        """The model itself: `network(inputs, state, resets) -> (outputs, state)`."""
        self.schema: Any = schema
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

    def __getnewargs__(self) -> tuple[SequenceModel, Schema]:
        """What a copy is made from: estimators around models are copied and sent to workers."""
        return self.network, self.schema

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
        return f"<stepscan.Model of {', '.join(facts)}; ask it with {', '.join(self.asks)}>"

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
            if isinstance(about.get("source"), str):
                about["source"] = moved(about["source"], folder.absolute().parent)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelCorruptError(f"{folder}: no schema of the data in it ({error})") from None
        config = network.config
        same = (config.tokens, config.reals) == (schema.tokens, schema.reals)
        if not same or not class_of(schema.kind).answers(config.head, schema):
            raise ModelCorruptError(f"{folder}: the model and its schema do not fit together")
        return Model(network, schema, about)

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Whether the head says what such data asks for."""
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "schema" not in self.__dict__:  # copied, not yet filled
            raise AttributeError(name)
        answer = f"ask it with {', '.join(self.asks)}"
        homes = {home: None for kind, home in HOMES.items() if name in class_of(kind).asks}
        if not homes:
            raise AttributeError(f"a model of {self.kind} has no {name!r}; {answer}")
        wanted = " or ".join(homes)
        raise WrongKindError(
            f"{name}: wants a model of {wanted}, this one is of {self.kind}; {answer}"
        )

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
            self.schema,
            data,
            stamps=times,
            memory=memory,
            begun=state is not None and steps > 0,
            measured=getattr(self.network.config.head, "measured", "base"),
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

    def own_data(self) -> Dataset:
        """What the model was trained on, if it is still where it was."""
        try:
            options = self.about["options"]
            like = self.schema if "warm_start" in self.about else None
            told = options and DataOptions(**tuples(options))
            return open_dataset(self.about["source"], told, like)
        except (KeyError, TypeError):
            raise DataError(f"{self!r} does not know its data: name a file") from None

    def last(self, inputs: Inputs) -> Any:
        """What the model says after the last step of one sequence."""
        return self.last_and_state(inputs)[0]

    @torch.no_grad()
    def last_and_state(self, inputs: Inputs) -> tuple[Any, Any]:
        """The same, and the state of every layer there."""
        state, outputs = None, None
        for part in _parts(inputs):
            outputs, state = self.network(part, state)
        return outputs, state

    @property
    def missing(self) -> tuple[str, ...]:
        """Further strings that mean a missing value, as in training."""
        return tuple((self.about.get("options") or {}).get("missing", ()))

    def table(self, data: "str | os.PathLike[str] | pd.DataFrame | Table") -> Table:
        """A table, where the same strings mean missing as in training."""
        if isinstance(data, Table):
            return data
        if isinstance(data, str | os.PathLike):
            path = Path(data)
            if not path.is_file():
                raise DataError(f"{path}: no such file")
            if not path.stat().st_size:
                raise DataError(f"{path}: the file is empty")
            return read_table(path, self.missing)
        return frame_table(data, HANDED, self.missing)


def class_of(kind: str) -> type[Model]:
    """The model of a kind of data; its module is imported when first asked for."""
    home = lookup(HOMES, kind, kind="kind of data")
    return import_module(f"stepscan.apps.{home}.model").MODEL


def _length(inputs: Inputs) -> int:
    return next(x.shape[1] for x in inputs if x is not None)


def _parts(inputs: Inputs) -> Iterator[Inputs]:
    """Stretches of bounded memory; at least one."""
    for start in range(0, max(_length(inputs), 1), PIECE):
        yield Inputs(*(None if x is None else x[:, start : start + PIECE] for x in inputs))
