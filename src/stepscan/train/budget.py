"""How much training: a number of steps, of tokens, or of minutes of training time."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Exactly one of the three. Steps and tokens make a run repeatable bit for bit; minutes, the
    measured kind, make candidates comparable on one machine but no two runs the same.
    """

    steps: int | None = None
    """Optimizer steps."""
    tokens: int | None = None
    """Steps of sequence read, rows times length in each optimizer step."""
    minutes: float | None = None
    """Training time; evaluating and saving do not count."""

    def __post_init__(self) -> None:
        """Reject none, several, and amounts that are no amount."""
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            got = ", ".join(f"{k}={v}" for k, v in given.items()) or "none"
            raise ValueError(f"budget: want exactly one of steps, tokens and minutes; got {got}")
        ((name, amount),) = given.items()
        if not (math.isfinite(amount) and amount > 0):
            raise ValueError(f"budget: want {name} above zero, got {amount}")

    def progress(self, *, steps: int, tokens: int, seconds: float) -> float:
        """The part of the budget that is used up, from 0 to 1."""
        if self.steps is not None:
            part = steps / self.steps
        elif self.tokens is not None:
            part = tokens / self.tokens
        else:
            assert self.minutes is not None
            part = seconds / (60 * self.minutes)
        return min(1.0, part)
