"""Gestures of a wrist sensor: learn them from examples, name new ones, and say so while they last.

python examples/10_classify.py
"""

from pathlib import Path
from tempfile import mkdtemp

import numpy as np

import stepscan as ss
from stepscan.data.sequences import long_frame


def recording(gesture: str, rng: np.random.Generator) -> np.ndarray:
    """Two axes of acceleration, 20 to 40 steps."""
    t = np.arange(int(rng.integers(20, 41))) + rng.uniform(0, 10)
    across = np.sin(0.7 * t) if gesture != "nod" else 0.1 * np.sin(t)
    up = np.cos(0.7 * t) if gesture == "circle" else np.sin(0.7 * t) if gesture == "nod" else 0 * t
    return np.stack([across, up], 1) + 0.2 * rng.normal(size=(len(t), 2))


rng = np.random.default_rng(0)
gestures = [("wave", "nod", "circle")[i % 3] for i in range(150)]
recordings = [recording(g, rng) for g in gestures]

# One row a step: id, step, the channels, and the label; the same table could be a csv file.
folder = Path(mkdtemp())
table = long_frame(recordings, gestures)
table.to_csv(folder / "gestures.csv", index=False)
model = ss.fit(folder / "gestures.csv", out=folder / "run", steps=60, layers="gru", width=32)

new = recording("circle", rng)
print("\na new recording is a", model.predict(new, top=2))
for seen, answer in zip((5, 10, 15), model.predict_stream(np.split(new[:15], 3)), strict=True):
    print(f"after {seen:2} steps: {answer[0].what} {answer[0].probability:.0%}")
print(f"confusion matrix and calibration: {folder}/run/report.html")
