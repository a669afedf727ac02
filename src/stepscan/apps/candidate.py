"""A model in training on a data set: looked at now and then, and its best weights are kept."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from stepscan.apps.domain import Domain, Scores, bounded
from stepscan.models import Config, SequenceModel, build
from stepscan.train.config import TrainConfig
from stepscan.train.loop import DivergedError, Trainer


class Candidate:
    """What `fit` and `compare` train. The look decides which weights are kept, the test part never.

    Args:
        domain: The data set and how to judge on it.
        config: Of the model.
        train: How to train; its seed also decides the initial weights.
        directory: The run folder, or None to keep everything in memory.
        on_better: Called with the model and its scores whenever a look is the best so far.
        log: Called with every record of the trainer.
        look: Steps of the validation part that a look reads; None is what the domain reads.
    """

    def __init__(
        self,
        domain: Domain,
        config: Config,
        train: TrainConfig,
        *,
        directory: Path | None = None,
        on_better: Callable[[SequenceModel, Scores], None] | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
        look: int | None = None,
    ) -> None:
        self.domain = domain
        self.metric = domain.metrics[0]
        self._look = domain.look if look is None else look
        self._judged = bounded(domain)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.model = build(config)
        self.curve: list[dict[str, float | None]] = []
        """Seconds, tokens and score of every look; None where the score was not finite."""
        self.best: Scores | None = None
        self._weights: dict[str, torch.Tensor] | None = None
        self._on_better = on_better
        self.trainer = Trainer(
            self.model,
            domain.dataset.parts["train"],
            train,
            directory=directory,
            evaluate=self.look,
            log=log,
            objective=domain.objective,
        )

    def look(self) -> Scores:
        """Score the weights as they are on a bounded piece of the validation part."""
        scores = self._judged.score(self.model, "valid", self._look)
        score = scores[self.metric.name]
        finite = all(map(math.isfinite, scores.values()))
        trainer = self.trainer
        self._seen(trainer.seconds, trainer.tokens, score if finite else None)
        trainer.enough = self._tired()
        if finite and (self.best is None or self.domain.better(scores, self.best)):
            self.remember(self.model, scores)
            if self._on_better is not None:
                self._on_better(self.model, scores)
        return scores

    def remember(self, model: SequenceModel, scores: Scores) -> None:
        """Take the best weights of a run that goes on."""
        self.best = scores
        self._weights = copy.deepcopy(model.state_dict())

    def recall(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take the curve of a run that goes on from its metrics."""
        for record in records:
            if record["event"] == "evaluation":
                score = record["scores"][self.metric.name]
                self._seen(record["seconds"], record["tokens"], score)
        self.trainer.enough = self._tired()

    def finish(self) -> SequenceModel:
        """The model with the best weights seen, calibrated; the trainer is closed.

        Raises:
            DivergedError: no look gave finite scores.
        """
        seen = bool(self.curve) and self.curve[-1]["tokens"] == self.trainer.tokens
        if not seen or self._weights is None:
            self.look()
        self.trainer.close()
        if self._weights is None:
            raise DivergedError(
                f"{self.metric.name} was never finite on the validation part; try a lower "
                f"learning rate than {self.trainer.config.learning_rate:g}"
            )
        self.model.load_state_dict(self._weights)
        self.domain.calibrate(self.model)
        return self.model.eval()

    def _tired(self) -> bool:
        """Whether the last looks were no better than the best one before them."""
        patience, best, since = self.trainer.config.patience, None, 0
        for score in (point["score"] for point in self.curve):
            better = score is not None and (best is None or self.metric.wins(score, best))
            best, since = (score, 0) if better else (best, since + 1)
        return patience is not None and since >= patience

    def _seen(self, seconds: float, tokens: int, score: float | None) -> None:
        self.curve.append({"seconds": seconds, "tokens": tokens, "score": score})
