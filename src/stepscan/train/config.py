"""How to train: plain values, kept in every checkpoint."""

import math
from dataclasses import dataclass
from typing import Literal

from stepscan.train.budget import Budget


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Exactly one of `steps`, `tokens` and `minutes` is the budget."""

    steps: int | None = None
    """Budget in optimizer steps."""
    tokens: int | None = None
    """Budget in steps of sequence read."""
    minutes: float | None = None
    """Budget in minutes of training; evaluating and saving do not count."""
    rows: int = 16
    """Sequences side by side in a batch."""
    length: int = 256
    """Steps of each sequence in a batch."""
    carry: bool = False
    """Go on in the state that the stretch before ended in (truncated back-propagation through
    time), instead of drawing random stretches. Attention without a window then sees one stretch
    back."""
    seed: int = 0
    """Decides the batches and the dropout."""
    learning_rate: float = 2e-3
    """Peak of the schedule."""
    weight_decay: float = 0.1
    """Of matrices, except those that their paper exempts."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    clip: float = 1.0
    """The largest norm of the gradient."""
    warmup: float = 0.05
    """Part of the budget in which the learning rate rises."""
    floor: float = 0.1
    """Part of the peak learning rate at which the schedule begins and ends; 1 never changes it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of products with weights, see `ops.projection`; everything else is float32."""
    evaluations: int = 20
    """How many times to evaluate over the budget."""
    patience: int | None = None
    """Stop after so many evaluations in a row that are no better than the best; None: never."""
    reports: int = 200
    """How many times to log over the budget."""
    save_seconds: float = 60.0
    """Time between checkpoints."""
    on_save_error: Literal["stop", "warn"] = "stop"
    """What to do when a checkpoint cannot be written, say because the disk is full."""

    def __post_init__(self) -> None:
        """Reject what cannot be trained with."""
        _ = self.budget
        for name in ("rows", "length", "evaluations", "reports"):
            if getattr(self, name) < 1:
                raise ValueError(f"train: want {name} >= 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"train: want {name} above zero, got {value}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"train: want patience >= 1 or None, got {self.patience}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"train: want 0 <= warmup < 1, got {self.warmup}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"train: want 0 <= floor <= 1, got {self.floor}")

    @property
    def budget(self) -> Budget:
        """The one that was given; raises if none or several were."""
        return Budget(steps=self.steps, tokens=self.tokens, minutes=self.minutes)


FREE = (
    "steps",
    "tokens",
    "minutes",
    "evaluations",
    "patience",
    "reports",
    "save_seconds",
    "on_save_error",
)
"""Fields that may differ when a run is resumed."""
