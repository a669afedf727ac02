"""Estimators in the manner of scikit-learn: parameters first, then `fit`, then `predict`.

    SequenceClassifier, SequenceRegressor    lists of arrays and labels
    Forecaster, NextEventPredictor, Recommender    frames

They hold parameters, call `stepscan.fit`, and ask the `Model` that it returns, which is there as
`model_`; what a model can do besides is done with that. `clone`, `get_params`, `Pipeline` and
`cross_val_score` work as with any other estimator. Of the data given to `fit`, some are held out to
choose the weights by and some for the test part, as everywhere in stepscan; `scores_` is what the
test part says.
"""

import os
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Shaped

from stepscan.apps.fit import fit
from stepscan.apps.model import Model
from stepscan.data.base import DataError, DataOptions
from stepscan.data.sequences import long_frame
from stepscan.data.tables import MISSING
from stepscan.train.evaluate import walk_outputs

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import NotFittedError
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.utils import check_random_state
except ImportError:
    raise ImportError("estimators need scikit-learn: pip install 'stepscan[sklearn]'") from None

if TYPE_CHECKING:
    import pandas as pd

E = TypeVar("E", bound="Estimator")


@dataclass(kw_only=True, eq=False, repr=False)
class Estimator(BaseEstimator):
    """What all of them share: how to train. Subclasses name the columns of their data."""

    minutes: float | None = None
    """Budget in minutes of training; without any budget it is 3."""
    steps: int | None = None
    """Budget in optimizer steps."""
    epochs: float | None = None
    """Budget in passes over the training part."""
    layers: str | None = None
    """Layer pattern or the name of a mixer; None is the recipe of the kind of data."""
    width: int | None = None
    """Model width."""
    rows: int | None = None
    """Sequences per batch."""
    length: int | None = None
    """Steps per training window."""
    learning_rate: float | None = None
    """Peak of the schedule."""
    dropout: float | None = None
    """Of block outputs."""
    valid: float | None = None
    """Held out for choosing; see `DataOptions`."""
    test: float | None = None
    """Held out for `scores_`."""
    random_state: Any = 0
    """An int, None, or a numpy RandomState: decides initial weights and batches."""
    out: str | os.PathLike[str] | None = None
    """The run folder, with report.html; None keeps none."""
    verbose: bool = False
    """Say what is going on."""

    _reading: ClassVar[tuple[str, ...]] = ()
    """Parameters that say how to read the data, under the names of `DataOptions`."""

    def _train(self, data: Any, **told: Any) -> None:
        """Set `model_` and `scores_`."""
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        ours = {f.name for f in fields(Estimator)} - {"random_state", "out", "verbose"}
        choices = {name: getattr(self, name) for name in ours - {"valid", "test"}}
        names = ("valid", "test", *self._reading)
        read = {name: getattr(self, name) for name in names} | told
        options = DataOptions(**{k: v for k, v in read.items() if v is not None})
        with tempfile.TemporaryDirectory(prefix="stepscan-") as scratch:
            self.model_: Any = fit(
                data,
                options=options,
                out=Path(scratch) / "run" if self.out is None else self.out,
                quiet=not self.verbose,
                seed=int(seed),
                **{name: value for name, value in choices.items() if value is not None},
            )
        self.scores_ = dict(self.model_.about["test"])

    @property
    def _model(self) -> Model:
        if not hasattr(self, "model_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        return self.model_


# Labelled sequences --------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class _OfSequences(Estimator):
    """X is a list of arrays [steps] or [steps, channels] of any lengths, or an array [sequences,
    steps] or [sequences, steps, channels].
    """

    valid: float | None = 0.1
    test: float | None = 0.1
    asked: str = "last"
    """Train the answer after the last step (last), or after every one (every)."""

    _reading: ClassVar[tuple[str, ...]] = ("asked",)

    def _fit(self, X: Any, y: Any, answer: str, label: str) -> None:
        sequences = as_sequences(X)
        if len(sequences) != len(y):
            raise DataError(f"want a label a sequence, got {len(sequences)} and {len(y)}")
        self.n_features_in_ = sequences[0].shape[1]
        frame = long_frame(sequences, y)
        self._train(frame, kind="labelled", id="id", time="step", label=label, answer=answer)

    def _sequences(self, X: Any) -> list[np.ndarray]:
        _ = self._model
        return as_sequences(X, self.n_features_in_)


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceClassifier(ClassifierMixin, _OfSequences):
    """A class for each sequence."""

    class_weights: str = "none"
    """none, or balanced, so that rare classes count as much as frequent ones."""

    _reading: ClassVar[tuple[str, ...]] = ("asked", "class_weights")

    def fit(self, X: Any, y: Any) -> "SequenceClassifier":
        """Learn from sequences and their classes, of any type that can be sorted."""
        self.classes_, place = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"want sequences of two classes or more, got {len(self.classes_)}")
        self.names_ = _names(self.classes_)
        self._fit(X, [self.names_[i] for i in place], "class", "label")
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "S K"]:
        """The probability of each of `classes_`."""
        chances = self._model.probabilities(self._sequences(X))
        at = [self.names_.index(name) for name in self._model.schema.classes]
        ordered = np.zeros((len(chances), len(self.classes_)))
        ordered[:, at] = chances
        return ordered

    def predict(self, X: Any) -> Shaped[np.ndarray, " S"]:
        """The likeliest class."""
        chances = self.predict_proba(X)
        return self.classes_[chances.argmax(1)]


def _names(classes: Shaped[np.ndarray, " K"]) -> list[str]:
    """What the model calls the classes: the same, where they are plain words."""
    words = [str(one) for one in classes]
    plain = classes.dtype.kind in "US" and all(w == w.strip() and w not in MISSING for w in words)
    return words if plain else [f"class {i}" for i in range(len(words))]


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceRegressor(RegressorMixin, _OfSequences):
    """A number for each sequence."""

    def fit(self, X: Any, y: Any) -> "SequenceRegressor":
        """Learn from sequences and their numbers."""
        self._fit(X, np.asarray(y, np.float64).tolist(), "number", "label")
        return self

    def predict(self, X: Any) -> Float[np.ndarray, " S"]:
        """The number of each sequence, in the unit of y."""
        return np.asarray(self._model.predict_many(self._sequences(X)), np.float64)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R2, as of every regressor of scikit-learn."""
        return float(r2_score(y, self.predict(X), sample_weight=sample_weight))


def as_sequences(X: Any, channels: int | None = None) -> list[Shaped[np.ndarray, "T C"]]:
    """Arrays [T C], of any lengths; `channels` is how many there have to be.

    Raises:
        DataError: no sequences, not one or two axes, or another number of channels.
    """
    found = [np.asarray(one) for one in X]
    if not found:
        raise DataError("want at least one sequence, got none")
    found = [one[:, None] if one.ndim == 1 else one for one in found]
    wanted = found[0].shape[-1] if channels is None else channels
    for i, one in enumerate(found):
        if one.ndim != 2 or not len(one) or one.shape[1] != wanted:
            raise DataError(
                f"sequence {i}: want an array [steps, {wanted}] with steps >= 1, "
                f"got shape {list(one.shape)}"
            )
    return found


# Frames --------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class Forecaster(Estimator):
    """Quantiles of the next values of every series of a frame."""

    horizon: int | None = None
    """Steps to forecast; None is what is usual at the frequency of the data."""
    target: str | None = None
    """The columns, where names do not tell; see `DataOptions`."""
    time: str | None = None
    id: str | None = None
    season: int | None = None
    covariates: tuple[str, ...] | None = None
    future: tuple[str, ...] | None = None

    _reading: ClassVar[tuple[str, ...]] = (
        "horizon",
        "target",
        "time",
        "id",
        "season",
        "covariates",
        "future",
    )

    def fit(self, X: "pd.DataFrame", y: None = None) -> "Forecaster":
        """Learn from the history of the series; the target is a column of X."""
        self._train(X, kind="series")
        self.history_ = X
        return self

    def predict(self, X: "pd.DataFrame | None" = None, **asked: Any) -> "pd.DataFrame":
        """What comes after the last value of each series in X; None is the history of `fit` and
        what `update` has read since. See `Model.forecast` for what can be asked.
        """
        model: Any = self._model
        if X is None and not getattr(self, "updated_", False):
            X = self.history_
        return model.forecast(X, **asked)

    def update(self, X: "pd.DataFrame") -> "Forecaster":
        """Read new rows without training: the next `predict()` starts after them."""
        model: Any = self._model
        model.update(X, history=None if getattr(self, "updated_", False) else self.history_)
        self.updated_ = True
        return self


@dataclass(kw_only=True, eq=False, repr=False)
class NextEventPredictor(Estimator):
    """What happens next in each case of an event log."""

    case: str | None = None
    """The columns, where names do not tell; see `DataOptions`."""
    activity: str | None = None
    time: str | None = None
    attributes: tuple[str, ...] | None = None
    split: str | None = None
    """Hold out the cases that begin last (time), or the last by name (name)."""

    _reading: ClassVar[tuple[str, ...]] = ("case", "activity", "time", "attributes", "split")

    def fit(self, X: "pd.DataFrame", y: None = None) -> "NextEventPredictor":
        """Learn from a log: a row an event."""
        self._train(X, kind="events")
        self.classes_ = np.array(self.model_.schema.names[1:], object)
        return self

    def predict(self, X: "pd.DataFrame") -> "pd.Series":
        """The likeliest next activity (or the end) of each case in X, by the name of the case."""
        return self.predict_proba(X).idxmax(axis=1)

    def predict_proba(self, X: "pd.DataFrame") -> "pd.DataFrame":
        """The probability of each of `classes_` to be next, a row a case."""
        import pandas as pd  # noqa: PLC0415

        model: Any = self._model
        packed, names = model.schema.encode(model.table(X))
        found = np.zeros((len(names), len(self.classes_)))
        for which, logits in model.said_last(packed):
            found[which] = logits[:, 1:].double().softmax(-1).numpy()
        return pd.DataFrame(
            found, index=pd.Index(names, name=model.schema.case), columns=self.classes_
        )

    def score(self, X: "pd.DataFrame", y: None = None) -> float:
        """The share of events in X, but the first of each case, that were likeliest before."""
        model: Any = self._model
        packed, _ = model.schema.encode(model.table(X))
        right, guess = [], []
        reading = {"rows": 64, "length": model.reach, "slots": model.reach}
        for batch, said in walk_outputs(model.network, packed, **reading):
            asked = batch.targets["token"] >= 0
            right.append(batch.targets["token"][asked])
            guess.append(said.logits[asked][:, 1:].argmax(-1) + 1)
        return float(accuracy_score(torch.cat(right), torch.cat(guess)))


@dataclass(kw_only=True, eq=False, repr=False)
class Recommender(Estimator):
    """Which items each user takes next."""

    user: str | None = None
    """The columns, where names do not tell; see `DataOptions`."""
    item: str | None = None
    time: str | None = None
    minimum: int | None = None
    """Items seen less often are left out."""

    _reading: ClassVar[tuple[str, ...]] = ("user", "item", "time", "minimum")

    def fit(self, X: "pd.DataFrame", y: None = None) -> "Recommender":
        """Learn from histories: a row for each item that a user took, with its time."""
        self._train(X, kind="interactions")
        self.history_ = X
        return self

    def predict(
        self, X: "pd.DataFrame | None" = None, *, top: int = 10, exclude_seen: bool = False
    ) -> "pd.DataFrame":
        """The best items for each user of X, known or not; None is the histories of `fit`."""
        model: Any = self._model
        history = self.history_ if X is None else X
        return model.recommend_table(history, top=top, exclude_seen=exclude_seen)
