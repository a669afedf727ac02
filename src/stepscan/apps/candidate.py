"""A model in training on a data set: it is looked at now and then, and its best weights are kept."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stepscan.apps.domain import Domain, Scores
from stepscan.models import ModelConfig, SequenceModel
from stepscan.train.config import TrainConfig
from stepscan.train.loop import Trainer

LOOK = 20_000  # steps of the validation part that a look reads


class Candidate:
    """What `fit` and `compare` train. The look decides which weights are kept, the test part never.

    Args:
        domain: The data set and how to judge on it.
        config: Of the model.
        train: How to train; its seed also decides the initial weights.
        directory: The run folder, or None to keep everything in memory.
        on_better: Called with the model and its scores whenever a look is the best so far.
        log: Called with every record of the trainer.
    """

    def __init__(
        self,
        domain: Domain,
        config: ModelConfig,
        train: TrainConfig,
        *,
        directory: Path | None = None,
        on_better: Callable[[SequenceModel, Scores], None] | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.domain = domain
        self.metric = domain.metrics[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.model = SequenceModel(config)
        self.curve: list[dict[str, float]] = []
        """Seconds, tokens and score of every look."""
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
        )

    def look(self) -> Scores:
        """Score the weights as they are on a bounded piece of the validation part."""
        scores = self.domain.score(self.model, "valid", LOOK)
        score = scores[self.metric.name]
        self.curve.append(
            {"seconds": self.trainer.seconds, "tokens": self.trainer.tokens, "score": score}
        )
        if self.best is None or self.metric.wins(score, self.best[self.metric.name]):
            self.best = scores
            self._weights = copy.deepcopy(self.model.state_dict())
            if self._on_better is not None:
                self._on_better(self.model, scores)
        return scores

    def remember(self, model: SequenceModel, scores: Scores) -> None:
        """Take the best weights of a run that goes on."""
        self.best = scores
        self._weights = copy.deepcopy(model.state_dict())

    def finish(self) -> SequenceModel:
        """The model with the best weights seen; the trainer is closed."""
        if not self.curve or self.curve[-1]["tokens"] < self.trainer.tokens:
            self.look()
        self.trainer.close()
        assert self._weights is not None
        self.model.load_state_dict(self._weights)
        return self.model.eval()
