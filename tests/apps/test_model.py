"""A fitted model as users meet it: ask it, stream through it, save it, load it."""

import json
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import events_frame, interactions_frame, series_frame
from torch.utils import _pytree as pytree

import stepscan as ss
from stepscan.apps.kinds import DOMAINS, domain_of
from stepscan.apps.model import Model
from stepscan.data.base import DataError, DataOptions
from stepscan.data.open import open_dataset
from stepscan.models import Inputs, SequenceModel

every_kind = pytest.mark.parametrize("kind", DOMAINS)
CUTS = [[], [1], [3, 3, 20], [0, 1, 2, 50], [71, 72]]


def near(a, b, tolerance=2e-5):
    for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


def pieces(data, cuts):
    return [data[a:b] for a, b in pairwise([0, *cuts, len(data)])]


def streamed(model, parts, **more):
    """Piece after piece, joined; and the state after."""
    state, said = None, []
    for i, part in enumerate(parts):
        outputs, state = model.stream(part, state, **{k: v[i] for k, v in more.items()})
        said.append(outputs)
    return pytree.tree_map(lambda *x: torch.cat(x), *said), state


def of_one(kind):
    """Something long that a model of this kind streams."""
    if kind == "text":
        return "the cat sat on a mat and a caf\u00e9 " * 4
    if kind == "events":
        frame = events_frame(60)
        return list(frame["activity"])[:100]
    if kind == "interactions":
        return list(interactions_frame()["item"])[:100]
    if kind == "series":
        frame = series_frame(("a",))
        return frame[120:].reset_index(drop=True)
    return None


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("kind", ["text", "events", "interactions", "series"])
def test_a_stream_in_pieces_is_the_stream(kind, cuts, models):
    model, data = models(kind), of_one(kind)
    whole, end = model.stream(data)
    again, state = streamed(model, pieces(data, cuts))
    near(again, whole)
    assert state.steps == end.steps
    near(state.layers, end.layers)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_times_of_events_are_known_across_a_cut(cuts, models):
    model, data = models("events"), of_one("events")
    gaps = np.random.default_rng(0).integers(1, 90_000, len(data))
    times = pd.Timestamp("2024-05-01") + pd.to_timedelta(gaps.cumsum(), unit="s")
    whole, _ = model.stream(data, times=times)
    again, _ = streamed(model, pieces(data, cuts), times=pieces(times, cuts))
    near(again, whole)
    frame = pd.DataFrame({"activity": data, "timestamp": times.astype(str)})
    near(streamed(model, pieces(frame, cuts))[0], whole)
    untimed, _ = model.stream(data)
    assert not torch.allclose(whole.logits, untimed.logits, atol=1e-4)


def test_a_stream_of_inputs_is_the_network(models):
    for kind in DOMAINS:
        model = models(kind)
        config = model.network.config
        inputs = Inputs(
            torch.ones(1, 30, len(config.tokens), dtype=torch.long) if config.tokens else None,
            torch.randn(1, 30, config.reals) if config.reals else None,
        )
        parts = [Inputs(*(None if x is None else x[:, s] for x in inputs)) for s in SLICES]
        whole, _ = model.network(inputs)
        near(streamed(model, parts)[0], pytree.tree_map(lambda x: x[0], whole))


SLICES = [slice(0, 7), slice(7, 8), slice(8, 30)]


def test_streamed_forecasts_are_those_of_forecast(models):
    model, frame = models("series"), series_frame(("a",))
    whole, state = model.stream(frame)
    said = model.forecast(frame)
    levels = [str(q) for q in model.network.config.head.quantiles]
    near(whole[-1], torch.tensor(said[levels].to_numpy()))
    # Rows without a value wait for one; they may come again with it.
    ahead = frame.tail(6).assign(y=np.nan)
    first, state = model.stream(pd.concat([frame[:-6], ahead]))
    rest, _ = model.stream(frame.tail(6), state)
    near(torch.cat([first, rest]), whole)
    longest = max((model.schema.season, *model.schema.lags))
    assert len(state.memory.rows) < 2 * longest + 12


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("clock", ["no time", "irregular", "known ahead"])
def test_series_of_any_clock_stream_in_pieces(clock, cuts, tmp_path):
    frame = series_frame(("a",))[["ds", "y"]]
    if clock == "irregular":
        minutes = np.random.default_rng(0).integers(1, 999, len(frame)).cumsum()
        frame["ds"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(minutes, unit="m")
    if clock == "no time":
        frame = frame[["y"]].assign(z=np.arange(len(frame)) % 7)
    future = ("open",) if clock == "known ahead" else ()
    if future:
        frame["open"] = np.arange(len(frame)) % 5
    frame.to_csv(tmp_path / "one.csv", index=False)
    told = DataOptions(target="y", horizon=6, season=12, test=24, valid=24, future=future)
    domain = domain_of(open_dataset(tmp_path / "one.csv", told))
    model = Model(SequenceModel(domain.config("min_gru", 16)), domain.schema)
    wanted, end = model.stream(frame)
    parts = pieces(frame, cuts)
    # What is known ahead has to be there, and comes again with its values; of irregular steps that
    # is when they are.
    if future or clock == "irregular":
        after = [frame[len(frame) :], *(frame[cut : cut + 6].assign(y=np.nan) for cut in cuts)]
        parts = [pd.concat([p, a]) for p, a in zip(parts, [*after[1:], after[0]], strict=True)]
    said, state = streamed(model, parts)
    near(said, wanted)
    assert state.steps == end.steps == len(frame)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("events", "JFK>LAX", r"got a single string: write \['JFK>LAX'\]"),
        ("events", ["JFK>LAXX"], "activity 'JFK>LAXX' was never seen.*Did you mean 'JFK>LAX'"),
        ("interactions", ["film 77"], "item 'film 77' was never seen in training"),
        ("labelled", ["black"], "want 1 channels of numbers"),
        ("series", [1.0, 2.0], "a frame of one series, in order of time, got list"),
        ("series", series_frame(("a", "b")), "one series at a time"),
        ("series", series_frame(("new",)), "series 'new' was not trained on"),
        ("text", 5, "text or bytes, got int"),
    ],
)
def test_what_cannot_be_streamed_is_said(kind, data, message, models):
    with pytest.raises(DataError, match=message):
        models(kind).stream(data)


def test_streams_refuse_what_would_be_wrong(models):
    events, series = models("events"), models("series")
    legs, times = ["JFK>LAX", "LAX>JFK"], ["2024-01-02 10:00", "2024-01-02 12:00"]
    _, state = events.stream(legs, times=times)
    with pytest.raises(DataError, match="with every piece of a case, or with none"):
        events.stream(legs, state)
    with pytest.raises(DataError, match="event 1 is before the one before"):
        events.stream(legs, state, times=times)
    with pytest.raises(DataError, match="one for each of 2 events, got 1"):
        events.stream(legs, times=times[:1])
    with pytest.raises(DataError, match="want dates such as"):
        events.stream(legs, times=[1, 2])
    frame = series_frame(("a",))
    _, state = series.stream(frame[:200])
    with pytest.raises(DataError, match="was read before"):
        series.stream(frame[199:], state)
    with pytest.raises(DataError, match="this is series 'a', got 'b'"):
        series.stream(series_frame(("b",))[200:], state)


@every_kind
def test_what_was_saved_is_loaded(kind, models):
    model = models(kind)
    again = ss.load(model.about["folder"])
    assert again.schema == model.schema
    assert again.about == model.about
    assert re.match(
        rf"<stepscan.Model of {kind}: .*width 16.*trained on .*ask it with", repr(again)
    )
    config = model.network.config
    inputs = Inputs(
        torch.ones(1, 9, len(config.tokens), dtype=torch.long) if config.tokens else None,
        torch.ones(1, 9, config.reals) if config.reals else None,
    )
    near(again.stream(inputs)[0], model.stream(inputs)[0], 0)


def test_the_same_question_in_any_form(models):
    model, legs = models("events"), ["JFK>LAX", "LAX>JFK", "JFK>BOS"]
    wanted = model.predict(legs, top=2)
    assert len(wanted) == 2
    assert wanted[0].probability >= wanted[1].probability
    for form in (np.array(legs), pd.Series(legs), tuple(legs), pd.DataFrame({"activity": legs})):
        assert model.predict(form, top=2) == wanted
    assert sum(p.probability for p in model.predict(legs, top=99)) == pytest.approx(1)
    frame = events_frame()
    one = frame[frame["case"] == "N003"]
    by_table = model.predict_table(frame)["N003"]
    alone = model.predict(one)
    assert [p.what for p in by_table] == [p.what for p in alone]
    assert [p.probability for p in by_table] == pytest.approx(
        [p.probability for p in alone], abs=1e-5
    )
    with pytest.raises(DataError, match="holds several: ask about all of them with predict_table"):
        model.predict(frame)
    items = models("interactions")
    history = ["film 1", "film 2"]
    assert {p.what for p in items.predict(history, top=99, exclude_seen=True)}.isdisjoint(history)
    assert model.next_time(legs, ["2024-01-02 10:00", "2024-01-02 12:00", "2024-01-02 15:00"]) > 0


def test_a_wrong_verb_says_the_right_one(models):
    with pytest.raises(ValueError, match=r"of text; ask it with generate, stream"):
        models("text").predict(["a"])
    with pytest.raises(ValueError, match=r"model of text, this one is of events.*predict"):
        models("events").generate("a")
    with pytest.raises(ValueError, match=r"model of series, this one is of text"):
        models("text").forecast()
    with pytest.raises(ValueError, match="at least one step of history"):
        models("events").predict([])
    with pytest.raises(ValueError, match="top >= 1, got 0"):
        models("events").predict(["JFK>LAX"], top=0)


def test_forecasts_are_a_frame_per_series_and_step(models):
    model = models("series")
    said = model.forecast()
    assert list(said.columns[:2]) == ["series", "time"]
    assert said.groupby("series").size().to_dict() == {"a": 6, "b": 6}
    levels = said[[str(q) for q in model.network.config.head.quantiles]].to_numpy()
    assert (np.diff(levels, axis=1) >= 0).all()
    from_file = model.forecast(series_frame())
    assert from_file["time"].tolist() == said["time"].tolist()
    np.testing.assert_allclose(from_file["0.5"], said["0.5"], rtol=0.2)
    new = model.forecast(series_frame(("a", "elsewhere")))
    assert set(new["series"]) == {"a", "elsewhere"}
    with pytest.raises(DataError, match='no column "y" for the target'):
        model.forecast(series_frame().drop(columns="y"))


def test_generated_text_is_repeatable_and_ends_where_told(models):
    model = models("text")
    text = model.generate("the ", length=30, seed=3)
    assert text == model.generate("the ", length=30, seed=3)
    assert text != model.generate("the ", length=30, seed=4)
    stop = text[10]
    assert model.generate("the ", length=30, seed=3, stop=stop) == text[: text.index(stop)]
    for wrong in ({"length": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 2.0}):
        with pytest.raises(ValueError, match=f"want {next(iter(wrong))}"):
            model.generate("the ", **wrong)


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["extra"].pop("schema"),
        lambda d: d["extra"].update(schema=3),
        lambda d: d["extra"]["schema"].update(kind="textt"),
        lambda d: d["extra"].update(about="abc"),
        lambda d: d["extra"]["schema"].update(activities=["a"]),
        lambda d: d["model"]["head"].update(vocab=3),
    ],
)
def test_a_foreign_schema_is_refused(change, models, tmp_path):
    path = models("events").save(tmp_path / "model")
    edit(path / "config.json", change)
    with pytest.raises(ValueError, match=str(path)):
        ss.load(path)


MILLION = """
import resource, sys, torch
torch.set_num_threads(1)
import stepscan as ss
model = ss.load(sys.argv[1])
text = (b"the cat sat on a mat and ran. " * 50_000)[: int(sys.argv[2])]
size, state, peaks, ends = int(sys.argv[3]), None, [], 0.0
for at in range(0, len(text), size):
    outputs, state = model.stream(text[at : at + size], state)
    ends += float(outputs.double().logsumexp(-1).sum())
    last = outputs[-1]
    del outputs
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
quarter = peaks[len(peaks) // 4]
print(state.steps, peaks[-1] - quarter, model.nbytes(state), ends, *last[:4].tolist())
"""


@pytest.fixture
def recurrent(small, tmp_path):
    """A model of text whose state has one size."""
    domain, network = small("text", "gated_delta_net[heads=2]*2")
    model = Model(network, domain.schema)
    model.save(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.slow
def test_a_million_tokens_take_no_more_memory_than_few(recurrent):
    found = []
    for size in (10_000, 4096):
        command = [sys.executable, "-c", MILLION, str(recurrent[1]), "1000000", str(size)]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append([float(x) for x in said.stdout.split()])
    for steps, grown, nbytes, *said in found:
        assert steps == 1_000_001
        assert grown < 4_000  # KB more at the end than after a quarter
        assert nbytes == found[0][2]
        assert said == pytest.approx(found[0][3:], rel=1e-4, abs=1e-4)


def test_a_long_stream_does_not_depend_on_the_size_of_its_pieces(recurrent):
    model, _ = recurrent
    text, found = (b"the cat sat on a mat and ran. " * 3334)[:100_000], []
    for size in (100_000, 9_999):
        state, said = None, []
        for at in range(0, 100_000, size):
            outputs, state = model.stream(text[at : at + size], state)
            said.append(outputs.logsumexp(-1))
        found.append((torch.cat(said), outputs[-1], model.nbytes(state)))
    near(found[1], found[0])
    assert found[0][2] == model.nbytes(model.stream(text[:5])[1])
