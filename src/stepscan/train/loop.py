"""The training loop, for every model and every kind of data.

One step: draw a batch, run the model, descend. Everything a step depends on is a function of the
weights, the optimizer, the carried state and (seed, step): batches and random numbers are drawn
afresh from (seed, step), so a run that was killed goes on bit for bit, and trainers that take turns
in one process do not disturb each other.
"""

import hashlib
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from stepscan import state as states
from stepscan.data.base import Batch, Packed
from stepscan.data.batches import draw
from stepscan.layers import costs
from stepscan.models.inputs import Inputs
from stepscan.models.model import SequenceModel
from stepscan.ops.projection import bfloat16_projections
from stepscan.train import checkpoint, snapshot
from stepscan.train.carry import newest_slots
from stepscan.train.config import TrainConfig
from stepscan.train.evaluate import on_device
from stepscan.train.lock import RunLock
from stepscan.train.log import METRICS, Metrics
from stepscan.train.objectives import Loss, loss
from stepscan.train.optimizer import adamw, set_rate
from stepscan.train.provenance import check_same, describe
from stepscan.train.schedule import rate
from stepscan.train.stopping import Stop, stop_requests

CHECKPOINTS = "checkpoints"
PATIENCE = 5  # non-finite steps in a row before training gives up
Objective = Callable[[SequenceModel, Batch, Any], tuple[Loss, Any]]
"""`(model, batch, state) -> (loss, state)`: runs the model over a batch, from a state or afresh."""


class DivergedError(RuntimeError):
    """The loss or its gradient was not finite, several steps in a row."""


def say_next(model: SequenceModel, batch: Batch, state: Any) -> tuple[Loss, Any]:
    """The objective of a head: what it says at every step, against the targets."""
    outputs, state = model(Inputs(batch.tokens, batch.reals), state, batch.resets)
    return loss(model.config.head, outputs, batch.targets), state


class Trainer:
    """Trains a model, in slices of any size; a context manager where there is a run folder.

    Args:
        model: What to train, in place.
        packed: The training part of the data.
        config: How.
        directory: The run folder: checkpoints, metrics.jsonl and a lock. None keeps nothing.
        evaluate: Scores the model as it is; called at intervals, its time does not count.
        log: Called with every record that goes to metrics.jsonl.
        objective: What a step descends; `say_next` unless a kind of data has its own.
    """

    def __init__(
        self,
        model: SequenceModel,
        packed: Packed,
        config: TrainConfig,
        *,
        directory: Path | None = None,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
        objective: Objective = say_next,
    ) -> None:
        if model.config.head.ahead and not model.causal:
            raise ValueError(
                f"train: a layer of this model reads both ways and sees what the head "
                f"{model.config.head.name} is to say; take causal mixers (`stepscan mixers`) or "
                f"the head classify"
            )
        self.model, self.packed, self.config = model, packed, config
        self._objective = objective
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        """Of training: without evaluating and saving."""
        self.enough = False
        """Set by who evaluates, to end the run before its budget does."""
        self.skipped = 0
        """Steps that were skipped because their loss or gradient was not finite."""
        self._in_a_row = 0
        self._state: Any = None
        self._device = next(model.parameters()).device
        self._optimizer = adamw(
            model,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=config.betas,
        )
        self._recent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        self._evaluate = evaluate
        self._logs = [] if log is None else [log]
        self._saved_at, self._saved_step = time.monotonic(), -1
        self._root: Path | None = None
        self._lock: RunLock | None = None
        self._metrics: Metrics | None = None
        if directory is not None:
            self._open(directory)

    @property
    def progress(self) -> float:
        """The part of the budget that is used up, from 0 to 1."""
        return self.config.budget.progress(
            steps=self.step, tokens=self.tokens, seconds=self.seconds
        )

    @property
    def done(self) -> bool:
        """Whether the budget is used up, or enough was seen."""
        return self.enough or self.progress >= 1

    @property
    def seconds_left(self) -> float:
        """An estimate, of training; NaN before the first step."""
        progress = self.progress
        return self.seconds * (1 - progress) / progress if progress else math.nan

    def run(self) -> Signals | None:
        """Train until the budget is used up or a signal comes, and save.

        Returns:
            The signal that ended it early; the exit code that goes with it is 128 + signal.
        """
        with stop_requests() as stop:
            self.advance(stop=stop)
            if stop.signal is not None:
                self._record("stopped", signal=stop.signal.name)
            self.save()
        return stop.signal

    def advance(
        self, *, seconds: float = math.inf, steps: int | None = None, stop: Stop | None = None
    ) -> None:
        """Train for a slice of training time or of steps, or until `stop` or the budget's end."""
        if self._root and not self.step and self._saved_step < 0 and checkpoint.exist(self._root):
            raise ValueError(
                f"{self._root.parent}: holds an unfinished or finished run: "
                f"resume it, or choose another folder"
            )
        last_second = self.seconds + seconds
        last_step = math.inf if steps is None else self.step + steps
        while not (self.done or stop or self.seconds >= last_second or self.step >= last_step):
            before = self.progress
            start = time.perf_counter()
            result = self._train_step()
            self.seconds += time.perf_counter() - start
            self._after_step(before, result, stop)

    def _train_step(self) -> tuple[Loss, float]:
        """Descend once; returns the loss and the norm of its gradient."""
        config, at = self.config, self.step
        set_rate(self._optimizer, rate(self.progress, warmup=config.warmup, floor=config.floor))
        batch = on_device(
            draw(
                self.packed,
                at,
                rows=config.rows,
                length=config.length,
                seed=config.seed,
                carry=config.carry,
            ),
            self._device,
        )
        self.model.train()
        with self._random_numbers_of(at):
            with (
                bfloat16_projections(config.precision == "bfloat16"),
                costs.collect() as asked_by_layers,
            ):
                result, state = self._objective(self.model, batch, self._state)
            self._optimizer.zero_grad()
            (result.mean + costs.total(asked_by_layers)).backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        finite = math.isfinite(result.mean.item()) and math.isfinite(norm.item())
        asked = any(int(count) for _, count in result.sums.values())
        if finite and asked:  # a batch that asks nothing must not move the weights by momentum
            clip_grads_with_norm_(self.model.parameters(), config.clip, norm)
            self._optimizer.step()
        if config.carry:  # a state that may hold NaN is dropped with its step
            self._state = newest_slots(states.detach(state), config.length) if finite else None
        self.step += 1
        self.tokens += config.rows * config.length
        self._in_a_row = 0 if finite else self._in_a_row + 1
        self.skipped += not finite
        return result, norm.item()

    def _after_step(self, before: float, result: tuple[Loss, float], stop: Stop | None) -> None:
        """Log, evaluate and save, where it is time to; evaluate not when there is a hurry."""
        cost, norm = result
        if self._in_a_row:
            what = f"loss {cost.mean.item()}, gradient norm {norm}"
            self._record("skipped", reason=what, in_a_row=self._in_a_row)
            if self._in_a_row >= PATIENCE:
                kept = f"; {self._root} keeps the last good checkpoint" if self._root else ""
                raise DivergedError(
                    f"step {self.step}: {what}, {PATIENCE} steps in a row not finite{kept}. "
                    f"Try a lower learning rate than {self.config.learning_rate:g}, and look "
                    f"for extreme values in the data."
                )
        else:
            for name, (total, count) in cost.sums.items():
                self._recent[name][0] += total.item()
                self._recent[name][1] += int(count)
        if self.step == 1 or self._passed(before, self.config.reports):
            means = {name: total / n for name, (total, n) in self._recent.items() if n}
            self._recent.clear()
            self._record(
                "step",
                loss=means,
                gradient_norm=norm if math.isfinite(norm) else None,
                learning_rate=max(group["lr"] for group in self._optimizer.param_groups),
                seconds_left=self.seconds_left,
                skipped=self.skipped,
            )
        if self._evaluate and not stop and self._passed(before, self.config.evaluations):
            self._record("evaluation", scores=dict(self._evaluate()))
        waited = time.monotonic() - self._saved_at
        if waited >= self.config.save_seconds and not self._in_a_row:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of this step; without a run folder, nothing."""
        if self._root is None or self._saved_step == self.step:
            return
        meta = {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            **self._provenance,
        }
        tensors = snapshot.take(self.model, self._optimizer, self._state)
        try:
            checkpoint.save(self._root, self.step, tensors, meta)
        except OSError as error:
            if self.config.on_save_error == "stop":
                raise
            self._warn(f"checkpoint not written, training goes on: {error}")
        else:
            self._saved_step = self.step
        self._saved_at = time.monotonic()

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False if there is none. Bit for bit the same run
        on the same kind of machine with the same number of threads.

        Raises:
            ValueError: the checkpoint is of other settings, another model or other data, or there
                are checkpoints but none of them is whole.
        """
        if self._root is None:
            return False
        found, problems = checkpoint.newest(self._root)
        if found is None:
            return False
        changes = check_same(found, self._provenance)
        like = self.model.init_state(1)
        self._state = snapshot.restore(found.tensors, self.model, self._optimizer, like)
        meta = found.meta
        self.step, self.tokens, self.seconds = found.step, meta["tokens"], meta["seconds"]
        self.skipped, self._in_a_row = meta["skipped"], meta["in_a_row"]
        self._saved_at, self._saved_step = time.monotonic(), found.step
        self._record("resumed")
        checkpoint.set_aside(self._root, newer_than=found.step)
        for problem in problems:
            self._warn(f"set aside a damaged checkpoint: {problem}")
        for change in changes:
            self._warn(change)
        return True

    def close(self) -> None:
        """Let go of the run folder."""
        if self._metrics is not None:
            self._logs.remove(self._metrics)
            self._metrics.close()
            self._metrics = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._root = None

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = RunLock(directory)
        self._root = directory / CHECKPOINTS
        checkpoint.clean(self._root)
        self._metrics = Metrics(directory / METRICS)
        self._logs.insert(0, self._metrics)
        if self._lock.note:
            self._record("note", message=self._lock.note)

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        return describe(self.config, self.model, self.packed)

    def _passed(self, before: float, times: int) -> bool:
        """Whether this step crossed one of so many marks, evenly spaced over the budget."""
        return int(self.progress * times) > int(before * times)

    def _record(self, event: str, **facts: Any) -> None:
        where = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        for log in self._logs:
            log({"event": event, **where, "progress": self.progress, **facts})

    def _warn(self, message: str) -> None:
        self._record("warning", message=message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)

    @contextmanager
    def _random_numbers_of(self, step: int) -> Iterator[None]:
        """Dropout from (seed, step), and the caller's random numbers as they were."""
        digest = hashlib.blake2b(f"{self.config.seed} {step}".encode(), digest_size=8).digest()
        device = self._device
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            torch.manual_seed(int.from_bytes(digest, "little") >> 1)
            yield
