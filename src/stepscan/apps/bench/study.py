"""The queue of cells: an Optuna study, which processes and machines share and which outlives them.

A cell is one mixer on one task: the learning rates first, then the other seeds at the best one.
Finished trainings lie in the run folder, so a cell that was killed halfway goes on where it was;
a worker that stops beating is noticed, and its cell is given to another.
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from stepscan.apps import runs
from stepscan.apps.bench.compute import of_cell
from stepscan.apps.bench.protocol import Protocol
from stepscan.apps.bench.training import train
from stepscan.tasks import TASKS

BEAT, GRACE = 10, 60
"""Seconds between signs of life, and without one after which a worker counts as gone."""
TRAININGS = "runs"
"""The folder of finished trainings, in a run folder."""
ATTEMPTS = 2
"""How often a cell that fails is tried."""


class Study:
    """Cells to do and done, in `storage`: a URL of a database; None is a file in the folder."""

    def __init__(self, folder: Path, storage: str | None) -> None:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Heartbeats are what notices a killed worker; that their interface may change is our care.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.folder = folder
        self._optuna = optuna
        self._study = optuna.create_study(
            study_name="stepscan bench",
            storage=optuna.storages.RDBStorage(
                storage or f"sqlite:///{folder.absolute()}/study.db",
                heartbeat_interval=BEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
            ),
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=0),
        )

    def add(self, cells: Sequence[tuple[str, str]]) -> None:
        """Queue the cells that are not there yet."""
        known = {_cell(trial) for trial in self._trials()}
        for cell in cells:
            if cell not in known:
                self._queue(cell)

    def work(
        self,
        protocol: Protocol,
        told: Callable[[str], None] = lambda line: None,
        most: int | None = None,
    ) -> None:
        """Take cells, `most` of them, or until none is left, neither in the queue nor with somebody
        who is gone.

        A process that was started for this stops when the one that started it is gone.
        """
        parent = multiprocessing.parent_process()
        taken = 0
        while self.unfinished() and taken != most:
            if parent is not None and not parent.is_alive():
                return
            trial = self._take()
            if trial is None:
                self._reclaim()
                time.sleep(1)
                continue
            taken += 1
            with self._beating(trial):
                value, state = self._do(trial, protocol, told)
            with contextlib.suppress(ValueError):  # taken for dead, and done by another
                self._study.tell(trial, value, state=getattr(self._optuna.trial.TrialState, state))

    def _take(self) -> Any:
        """The next cell, or None. One worker of a machine at a time: SQLite has no row locks."""
        with (self.folder / "queue.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                # We beat by ourselves, since `optimize` cannot be kept from asking at once.
                return self._study.ask() if self._trials("WAITING") else None

    @contextlib.contextmanager
    def _beating(self, trial: Any) -> Iterator[None]:
        """Signs of life while the block runs."""
        storage, over = self._study._storage, threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                storage.record_heartbeat(trial._trial_id)

        storage.record_heartbeat(trial._trial_id)
        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join()

    def _reclaim(self) -> None:
        """Give cells of workers that are gone to others."""
        self._optuna.storages.fail_stale_trials(self._study)
        for trial in self._trials("RUNNING"):  # gone before the first sign of life
            age = (datetime.now() - trial.datetime_start).total_seconds()
            if "begun" not in trial.user_attrs and age > GRACE:
                with contextlib.suppress(ValueError):  # another worker was faster
                    self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
                    self._queue(_cell(trial))

    def cells(self) -> list[tuple[str, str]]:
        """All cells, as they were added."""
        return list(dict.fromkeys(_cell(trial) for trial in self._trials() if _cell(trial)[0]))

    def done(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """The trainings of every finished cell."""
        return {_cell(t): json.loads(t.user_attrs["runs"]) for t in self._trials("COMPLETE")}

    def best(self) -> dict[tuple[str, str], float]:
        """The best validation score of every finished cell."""
        return {_cell(trial): trial.value or 0.0 for trial in self._trials("COMPLETE")}

    def failed(self) -> dict[tuple[str, str], str]:
        """What went wrong in the cells that were given up."""
        broken = {_cell(t): t.user_attrs.get("error", "killed") for t in self._trials("FAIL")}
        return {cell: broken[cell] for cell in self._given_up()}

    def _queue(self, cell: tuple[str, str]) -> None:
        self._study.enqueue_trial({}, user_attrs={"mixer": cell[0], "task": cell[1]})

    def unfinished(self) -> set[tuple[str, str]]:
        """The cells that are neither done nor given up."""
        trials = self._trials()
        done = {_cell(t) for t in trials if t.state.name == "COMPLETE"}
        return {_cell(t) for t in trials if _cell(t)[0]} - done - self._given_up()

    def _given_up(self) -> set[tuple[str, str]]:
        """The cells that failed too often."""
        failures = Counter(_cell(t) for t in self._trials("FAIL") if "error" in t.user_attrs)
        return {cell for cell, count in failures.items() if count >= ATTEMPTS}

    def _trials(self, *states: str) -> list[Any]:
        wanted = [getattr(self._optuna.trial.TrialState, name) for name in states] or None
        return self._study.get_trials(deepcopy=False, states=wanted)

    def _do(
        self, trial: Any, protocol: Protocol, told: Callable[[str], None]
    ) -> tuple[float | None, str]:
        """One cell: its best validation score, and how it ended."""
        cell = _cell(trial)
        trial.set_user_attr("begun", True)
        if not cell[0]:  # another machine was faster: Optuna makes up a trial of its own
            return None, "PRUNED"
        try:
            protocol = of_cell(protocol, self.folder, *cell)
            found = run_cell(*cell, protocol, self.folder / TRAININGS, told)
        except Exception as error:  # of any kind: the other cells go on
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            if len([t for t in self._trials("FAIL") if _cell(t) == cell]) + 1 < ATTEMPTS:
                self._queue(cell)
            return None, "FAIL"
        trial.set_user_attr("runs", json.dumps(found))
        best = max((run["valid"] for run in found if run["valid"] is not None), default=0.0)
        return best, "COMPLETE"


def run_cell(
    mixer: str, task: str, protocol: Protocol, folder: Path, told: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The trainings of one cell; those that lie in the folder are not done again."""
    folder.mkdir(parents=True, exist_ok=True)

    def run(rate: float, seed: int) -> dict[str, Any]:
        spec = {"mixer": mixer, "task": task, "rate": rate, "seed": seed, **protocol.key()}
        name = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
        path = folder / f"{runs.word(mixer)}-{task}-{name}.json"
        if path.exists():
            return dict(runs.read_json(path))
        told(f"{mixer} on {task}, rate {rate:g}, seed {seed}")
        found = train(mixer, TASKS[task](), protocol, rate=rate, seed=seed)
        runs.write_json(path, found)
        return found

    sweep = [run(rate, 0) for rate in protocol.rates]
    best = best_rate(sweep)
    return sweep + [run(best, seed) for seed in range(1, protocol.seeds)]


def best_rate(sweep: Sequence[Mapping[str, Any]]) -> float:
    """Of trainings that differ in the rate alone: by validation, then by how few steps it took."""
    finite = [run for run in sweep if not run["diverged"]] or list(sweep)
    return max(finite, key=lambda run: (run["valid"] or 0.0, -run["steps"]))["rate"]


def work(folder: Path, storage: str | None, protocol: Mapping[str, Any], most: int) -> None:
    """What a worker process does."""
    torch.set_num_threads(1)
    Study(folder, storage).work(Protocol.from_dict(protocol), most=most)


def _cell(trial: Any) -> tuple[str, str]:
    return trial.user_attrs.get("mixer", ""), trial.user_attrs.get("task", "")


def _optuna() -> Any:
    try:
        import optuna  # noqa: PLC0415
    except ImportError:
        raise ImportError(
            "bench: needs Optuna for its queue; install it with: pip install 'stepscan[sweep]'"
        ) from None
    return optuna
