"""Hidden Markov model of symbols, fitted by expectation and maximisation (Baum et al. 1970).

Forward and backward passes are scaled at every step (Rabiner 1989, section V.A) and run over all
cases side by side. Each pass of EM cannot lower the likelihood; `log_likelihoods` keeps them.
"""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from stepscan.apps.baselines.symbols import Ids, SymbolModel, overall

FEWEST = 5  # passes


class HiddenMarkov(SymbolModel):
    """K hidden states; a state begins a case, moves to another, and shows a symbol."""

    name: ClassVar[str] = "HMM"
    most: ClassVar[int | None] = 50_000

    def __init__(
        self, states: int = 32, *, passes: int = 60, tolerance: float = 1e-4, seed: int = 0
    ) -> None:
        self.states, self.passes, self.tolerance, self.seed = states, passes, tolerance, seed

    def fit(self, cases: list[Ids], vocab: int) -> None:
        """Until FEWEST passes together gain less than `tolerance` of it, or for `passes`."""
        rng = np.random.default_rng(self.seed)
        K = self.states
        self.base = overall(cases, vocab)
        self.first = rng.dirichlet(np.ones(K))
        self.move = rng.dirichlet(np.ones(K), K)
        self.show = self.base * rng.exponential(size=(K, vocab)) + 1e-6
        self.show /= self.show.sum(1, keepdims=True)
        lengths = np.array([len(case) for case in cases])
        order = np.argsort(-lengths, kind="stable")
        padded = np.zeros((len(cases), lengths.max()), np.int64)
        for row, i in enumerate(order):
            padded[row, : lengths[i]] = cases[i]
        alive = [int((lengths > t).sum()) for t in range(lengths.max())]
        self.log_likelihoods: list[float] = []
        for _ in range(self.passes):
            self.log_likelihoods.append(self._pass(padded, alive))
            if len(self.log_likelihoods) > 2 * FEWEST:  # the first ones gain little: all is alike
                before, now = self.log_likelihoods[-1 - FEWEST], self.log_likelihoods[-1]
                if now - before < self.tolerance * abs(before):
                    break

    def _pass(self, padded: Int[np.ndarray, "S T"], alive: list[int]) -> float:
        """One pass of EM; the log likelihood before it."""
        shows = self.show.T  # [V K]
        forward: list[NDArray[np.float64]] = []
        scales: list[NDArray[np.float64]] = []
        for t, rows in enumerate(alive):
            before = forward[-1][:rows] @ self.move if t else np.tile(self.first, (rows, 1))
            joint = before * shows[padded[:rows, t]]
            scale = joint.sum(1)
            forward.append(joint / scale[:, None])
            scales.append(scale)
        first, move = np.zeros_like(self.first), np.zeros_like(self.move)
        show = np.zeros_like(shows)
        backward = np.ones((0, self.states))
        for t in range(len(alive) - 1, -1, -1):
            rows = alive[t]
            here = np.ones((rows, self.states))
            if len(backward):
                n = len(backward)
                ahead = shows[padded[:n, t + 1]] * backward / scales[t + 1][:, None]
                here[:n] = ahead @ self.move.T
                move += forward[t][:n].T @ ahead
            belief = forward[t] * here
            show += _added(padded[:rows, t], belief, len(show))
            if t == 0:
                first = belief.sum(0)
            backward = here
        self.first = first / first.sum()
        self.move = _rows(move * self.move, self.move)
        self.show = _rows(show.T, self.show)
        return float(sum(np.log(scale).sum() for scale in scales))

    def start(self, rows: int) -> NDArray[Any]:
        """What is believed of the state that the next symbol comes from."""
        return np.tile(self.first, (rows, 1))

    def read(self, state: NDArray[Any], symbols: Int[np.ndarray, " B"]) -> NDArray[Any]:
        """What the symbol says of the state, then one move."""
        joint = state * self.show.T[symbols]
        total = joint.sum(1, keepdims=True)
        return np.where(total > 1e-300, joint / np.maximum(total, 1e-300), state) @ self.move

    def chances(self, state: NDArray[Any]) -> Float[np.ndarray, "B V"]:
        """With a little of what is frequent overall, for what no state ever showed."""
        return 0.99 * (state @ self.show) + 0.01 * self.base

    def places(self, state: NDArray[Any]) -> Int[np.ndarray, " B"]:
        """The likeliest state."""
        return state.argmax(1)


def _added(
    symbols: Int[np.ndarray, " N"], belief: Float[np.ndarray, "N K"], vocab: int
) -> NDArray[np.float64]:
    """The sum of the rows of each symbol, [V K]."""
    one_hot = np.zeros((vocab, len(symbols)))
    one_hot[symbols, np.arange(len(symbols))] = 1
    return one_hot @ belief


def _rows(counts: Float[np.ndarray, "K N"], before: Float[np.ndarray, "K N"]) -> NDArray[Any]:
    """Each row to sum 1; a state that was never visited stays as it was."""
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1e-300), before)
