"""The chaotic systems of the package dysts (Gilpin 2021, arXiv:2110.05266), as `System`s.

    system = dysts_system("Thomas")
    x = trajectories(system, 8, 1000, torch.Generator().manual_seed(0))

Equations, parameters, periods and exponents are read from the installed package, nothing is
downloaded: `pip install 'stepscan[chaos]'`. It wants pandas 2, which is why it has its own extra.
The integrators are ours: Runge and Kutta's method of order 4, a hundred samples a period. Systems
with a delay keep their last `tau` of history as their state and show its end.
"""

import json
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module, resources
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.names import lookup
from stepscan.tasks.dynamics import System, runge_kutta

PER_PERIOD = 100
"""Samples in a period, as dysts counts it: that of the strongest frequency."""
SUBSTEPS = 10
"""Steps of the integrator between two samples."""
PER_DELAY = 400
"""Least number of steps in a delay."""


def dysts_names() -> list[str]:
    """All systems there are, with a delay too."""
    return sorted(_table())


def dysts_system(name: str) -> System:
    """One of them; raises `ImportError` that names the extra where dysts is not installed."""
    told: dict[str, Any] = lookup(_table(), name, kind="system of dysts")
    model = getattr(_flows(), name)()
    every = told["period"] / PER_PERIOD
    history = bool(told["delay"])
    advance = _delayed(model, told, every) if history else _plain(model, every)
    size = _slots(told, every)[0] + 1 if history else told["embedding_dimension"]

    def start(n: int, rng: torch.Generator) -> Tensor:
        place = torch.from_numpy(np.array(told["initial_conditions"], dtype=np.float64))
        if history:  # a smooth past of about the size of what dysts starts with
            height = place.mean() + 0.2 * place.std() * torch.randn(n, 1, generator=rng).double()
            angle = torch.linspace(0, 6, size, dtype=torch.float64) + height
            return height + 0.3 * place.std() * angle.sin()
        return place * (1 + 1e-3 * torch.randn(n, size, generator=rng, dtype=torch.float64))

    def observe(x: Tensor) -> Tensor:
        if history:
            return x[..., -1:]
        post = getattr(model, "_postprocessing", None)  # what bounds angles and time
        if post is None:
            return x
        return torch.stack([torch.as_tensor(c) for c in post(*x.numpy().T)], -1)

    return System(
        name=name,
        size=size,
        every=every,
        exponent=told["maximum_lyapunov_estimated"],
        mean=tuple(np.ravel(told["mean"])[: 1 if history else None].tolist()),
        scale=tuple(np.ravel(told["std"])[: 1 if history else None].tolist()),
        advance=advance,
        start=start,
        observe=observe,
    )


def _plain(model: Any, every: float) -> Callable[[Float[Tensor, "B N"]], Float[Tensor, "B N"]]:
    by_coordinate = "rhs" in type(model).__dict__  # these unpack their argument, others transpose

    def many(x: np.ndarray) -> np.ndarray:
        given = model.rhs(x.T if by_coordinate else x, 0.0)
        return np.stack(np.broadcast_arrays(*given), -1)

    def each(x: np.ndarray) -> np.ndarray:
        return np.array([model.rhs(row, 0.0) for row in x], dtype=np.float64)

    # Some equations have branches: they take one state at a time.
    place = np.array(model.ic, dtype=np.float64) * np.array([[1.0], [1.01], [0.99]])
    try:
        same = np.allclose(many(place), each(place))
    except (ValueError, TypeError, IndexError):
        same = False
    rate = many if same else each
    return runge_kutta(
        lambda x: torch.from_numpy(rate(x.numpy())), every=every, largest=every / SUBSTEPS
    )


def _slots(told: dict[str, Any], every: float) -> tuple[int, int, float]:
    """Steps in a delay, steps in a sample, and the time of one; a sample is nearly `every`."""
    tau = told["parameters"]["tau"]
    count = max(PER_DELAY, round(tau / every * SUBSTEPS))
    dt = tau / count
    return count, max(1, round(every / dt)), dt


def _delayed(
    model: Any, told: dict[str, Any], every: float
) -> Callable[[Float[Tensor, "B N"]], Float[Tensor, "B N"]]:
    """Heun's method over a history; its last entry is now, its first one delay ago."""
    _, steps, dt = _slots(told, every)

    def rate(x: Tensor, late: Tensor) -> Tensor:
        return torch.as_tensor(model._rhs(x.numpy(), late.numpy(), 0.0, *model.param_list))

    def advance(x: Tensor) -> Tensor:
        past, now = list(x.unbind(1)), x[:, -1]
        for i in range(steps):
            slope = rate(now, past[i])
            ahead = rate(now + dt * slope, past[i + 1])
            now = now + dt / 2 * (slope + ahead)
            past.append(now)
        return torch.stack(past[steps:], 1)

    return advance


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    _flows()
    text = resources.files("dysts").joinpath("data/chaotic_attractors.json").read_text()
    return json.loads(text)


@lru_cache(maxsize=1)
def _flows() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it would be faster with numba
            return import_module("dysts.flows")
    except ImportError as e:
        raise ImportError("chaotic systems of dysts: pip install 'stepscan[chaos]'") from e
