"""Words written with a sensor pen: generated, of several writers, to be read by CTC.

A letter is a path of straight strokes on a unit square (STROKES). A writer has a slant, a size, a
proportion, a speed, a way of rounding corners, a tilt of the pen and a noise; a word is written
letter after letter at an uneven pace. What the pen reports at every step: acceleration along and
across the line (second differences, turned by the tilt), the rate at which the direction of writing
turns, and the force on the tip (about 1 on the paper, 0 while it moves to the next stroke).

It has the form of the recordings of sensor pens (Ott et al. 2022, arXiv:2202.07036: IMU and force,
words, splits that depend on the writer or not), not their difficulty: no drift, no left-handers.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from stepscan.data.base import DataOptions, Dataset
from stepscan.data.labelled_dataset import labelled_dataset
from stepscan.data.sequences import Sequences, from_arrays

STROKES = {  # corners (across, up) of the strokes of a letter; the pen is lifted between strokes
    "a": (((0.9, 0.8), (0.3, 1.0), (0.0, 0.5), (0.3, 0.0), (0.9, 0.3), (0.9, 1.0), (0.9, 0.0)),),
    "c": (((0.9, 0.9), (0.3, 1.0), (0.0, 0.5), (0.3, 0.0), (0.9, 0.1)),),
    "e": (((0.0, 0.5), (0.9, 0.5), (0.6, 1.0), (0.1, 0.8), (0.1, 0.2), (0.5, 0.0), (0.9, 0.2)),),
    "i": (((0.2, 1.0), (0.2, 0.0)), ((0.2, 1.4), (0.25, 1.4))),
    "l": (((0.2, 2.0), (0.2, 0.1), (0.5, 0.0)),),
    "m": (((0.0, 0.0), (0.0, 1.0), (0.4, 1.0), (0.45, 0.0), (0.5, 1.0), (0.9, 1.0), (0.95, 0.0)),),
    "n": (((0.0, 0.0), (0.0, 1.0), (0.6, 1.0), (0.7, 0.0)),),
    "o": (((0.5, 1.0), (0.0, 0.6), (0.2, 0.0), (0.8, 0.0), (0.9, 0.6), (0.5, 1.0)),),
    "r": (((0.0, 0.0), (0.0, 1.0), (0.3, 1.0), (0.6, 0.8)),),
    "s": (((0.8, 0.9), (0.2, 1.0), (0.1, 0.6), (0.8, 0.4), (0.7, 0.0), (0.0, 0.1)),),
    "t": (((0.4, 1.8), (0.4, 0.1), (0.7, 0.0)), ((0.1, 1.1), (0.8, 1.1))),
    "u": (((0.0, 1.0), (0.0, 0.2), (0.3, 0.0), (0.8, 0.3), (0.8, 1.0), (0.85, 0.0)),),
}
CHANNELS = ("along", "across", "turning", "force")
WRITERS, WORDS = 12, 60
PACE = 3.2  # steps of a stroke of length 1


class Writer(NamedTuple):
    """How somebody writes."""

    slant: float
    size: float
    proportion: float
    speed: float
    rounding: float
    tilt: float
    noise: float


def writer(rng: np.random.Generator) -> Writer:
    """Somebody."""
    return Writer(
        slant=rng.uniform(-0.1, 0.7),
        size=float(np.exp(rng.normal(0, 0.2))),
        proportion=float(np.exp(rng.normal(0, 0.15))),
        speed=float(np.exp(rng.normal(0, 0.25))),
        rounding=rng.uniform(0.3, 0.7),
        tilt=rng.normal(0, 0.35),
        noise=rng.uniform(0.02, 0.06),
    )


def write(word: str, by: Writer, rng: np.random.Generator) -> Float[np.ndarray, "T 4"]:
    """What the pen reports while this word is written."""
    corners, down, left = [], [], 0.0
    for letter in word:
        for stroke in STROKES[letter]:
            for k, (x, y) in enumerate(stroke):
                wobble = rng.normal(0, 0.04, 2)
                corners.append((left + by.proportion * x + wobble[0], y + wobble[1]))
                down.append(k > 0)  # whether the way to this corner is written
        left += by.proportion * (max(x for s in STROKES[letter] for x, _ in s) + 0.35)
    path, force = _walk(np.array(corners), np.array(down), by, rng)
    for _ in range(2):  # corners are rounded by averaging with what was just before
        path[1:] = (1 - by.rounding) * path[1:] + by.rounding * path[:-1]
    path = by.size * np.stack([path[:, 0] + by.slant * path[:, 1], path[:, 1]], 1)
    speed = np.diff(path, axis=0, prepend=path[:1])
    push = np.diff(speed, axis=0, prepend=speed[:1])
    turn = np.array([[np.cos(by.tilt), -np.sin(by.tilt)], [np.sin(by.tilt), np.cos(by.tilt)]])
    angle = np.unwrap(np.arctan2(speed[:, 1], speed[:, 0]))
    turning = np.clip(np.diff(angle, prepend=angle[:1]), -1.5, 1.5)
    report = np.column_stack([4 * push @ turn.T, turning, force])
    return report + rng.normal(0, by.noise, report.shape)


def pen_words(options: DataOptions) -> Dataset:
    """720 words of 12 writers, held out at random: every writer is known."""
    found = _written()
    return _dataset(found, options, "pen_words")


def pen_words_new_writers(options: DataOptions) -> Dataset:
    """The same words; those of three writers are the test part, of one more for choosing."""
    found = _written()
    who = np.repeat(np.arange(WRITERS), WORDS)
    parts = np.where(who >= WRITERS - 3, 2, np.where(who == WRITERS - 4, 1, 0))
    return _dataset(replace(found, parts=parts), options, "pen_words_new_writers")


def _dataset(found: Sequences, options: DataOptions, name: str) -> Dataset:
    return labelled_dataset(found, replace(options, answer=options.answer or "text"), name=name)


def _written() -> Sequences:
    rng = np.random.default_rng(7)
    letters, words, arrays = list(STROKES), [], []
    for _ in range(WRITERS):
        by = writer(rng)
        for _ in range(WORDS):
            words.append("".join(rng.choice(letters, int(rng.integers(3, 7)))))
            arrays.append(write(words[-1], by, rng))
    return from_arrays(arrays, words, channels=CHANNELS)


def _walk(
    corners: Float[np.ndarray, "K 2"],
    down: np.ndarray,
    by: Writer,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "T 2"], Float[np.ndarray, " T"]]:
    """The way along the corners at an uneven pace, and the force of the tip."""
    path, force = [corners[:1]], [np.ones(1)]
    for start, end, written in zip(corners[:-1], corners[1:], down[1:], strict=True):
        length = float(np.hypot(*(end - start)))
        steps = max(1, round(PACE * length / by.speed * rng.uniform(0.75, 1.3)))
        share = np.arange(1, steps + 1)[:, None] / steps
        path.append(start + share * (end - start))
        press = rng.uniform(0.8, 1.2) if written else 0.0
        force.append(np.full(steps, press))
    return np.concatenate(path), np.concatenate(force)
