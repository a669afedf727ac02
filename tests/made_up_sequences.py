"""Small labelled sequences with something in them to learn."""

import numpy as np
import pandas as pd


def waves(count=60, seed=0, classes=("slow", "mid", "fast")):
    """Sequences [T 2] of 20 to 40 steps, whose class is their frequency."""
    rng = np.random.default_rng(seed)
    arrays, labels = [], []
    for i in range(count):
        which = i % len(classes)
        t = np.arange(int(rng.integers(20, 41)))
        phase = rng.uniform(0, 2 * np.pi)
        a = np.sin(2 * np.pi * t * (0.05, 0.12, 0.25)[which] + phase)
        arrays.append(
            np.stack([a, rng.normal(size=len(t))], 1) + 0.1 * rng.normal(size=(len(t), 2))
        )
        labels.append(classes[which])
    return arrays, labels


def sensors_frame(count=60, seed=0):
    """The same as a long table."""
    arrays, labels = waves(count, seed)
    rows = [
        (f"r{i:03}", t, *step, label)
        for i, (array, label) in enumerate(zip(arrays, labels, strict=True))
        for t, step in enumerate(array)
    ]
    return pd.DataFrame(rows, columns=["recording", "t", "x", "noise", "label"])


def letters_frame(count=40, seed=0):
    """Sequences of letters; class "ab" holds an a before any b."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        letters = rng.choice(list("cdef"), int(rng.integers(6, 12)))
        letters[2], letters[4] = ("a", "b") if i % 2 else ("b", "a")
        for t, letter in enumerate(letters):
            rows.append((f"s{i:03}", t, letter, "ab" if i % 2 else "ba"))
    return pd.DataFrame(rows, columns=["seq", "step", "base", "class"])


def levels(count=60, seed=0):
    """Sequences [T] and the mean of their last five values, a number."""
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(3.0, 2.0, int(rng.integers(8, 20))) for _ in range(count)]
    return arrays, [float(x[-5:].mean()) for x in arrays]
