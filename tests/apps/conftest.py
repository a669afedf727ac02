"""Small data of every kind, and a model of each, fitted once."""

import pytest
from made_up_catalogue import catalogue, ratings
from made_up_data import TINY, events_frame, interactions_frame, prose, series_frame
from made_up_students import students

from stepscan.apps.fit import fit
from stepscan.apps.kinds import domain_of
from stepscan.data.base import DataOptions
from stepscan.data.open import open_dataset
from stepscan.models import SequenceModel


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A file of every kind of data; digits come by name."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "prose.txt").write_text(prose())
    events_frame().to_csv(folder / "events.csv", index=False)
    series_frame().to_csv(folder / "series.csv", index=False)
    interactions_frame().to_csv(folder / "interactions.csv", index=False)
    items = catalogue()
    items.to_csv(folder / "items.csv", index=False)
    taken, _ = ratings(items, users=30, steps=6, new=0.34)
    taken.to_csv(folder / "taken.csv", index=False)
    students(users=24, answers=20)[0].to_csv(folder / "answers.csv", index=False)
    return {
        "text": folder / "prose.txt",
        "events": folder / "events.csv",
        "series": folder / "series.csv",
        "interactions": folder / "interactions.csv",
        "item_texts": folder / "taken.csv",
        "responses": folder / "answers.csv",
        "labelled": "digits",
    }


@pytest.fixture(scope="session")
def options(files):
    """How to read each file."""
    return {
        "series": DataOptions(horizon=6, test=24, valid=24),
        "item_texts": DataOptions(items=str(files["item_texts"].with_name("items.csv"))),
    }


@pytest.fixture(scope="session")
def datasets(files, options):
    """Every kind of data, read."""
    return {kind: open_dataset(file, options.get(kind)) for kind, file in files.items()}


@pytest.fixture(scope="session")
def models(files, options, tmp_path_factory):
    """A fitted model of a kind of data, made when it is first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            out = tmp_path_factory.mktemp("runs") / kind
            made[kind] = fit(files[kind], options=options.get(kind), out=out, **TINY)
        return made[kind]

    return get


@pytest.fixture
def small(datasets):
    """A fresh domain of a kind of data, and a fresh little model for it."""

    def get(kind, layers="min_gru"):
        domain = domain_of(datasets[kind])
        return domain, SequenceModel(domain.config(layers, 16)).eval()

    return get
