"""Tables in pieces: one after another they are the table, sorted; and parts that lie on disk."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from stepscan.data import DataError, Packed, gather
from stepscan.data.files import read_table
from stepscan.data.pieces import Pieces
from stepscan.data.stored import PartWriter, Stored, Workshop
from stepscan.data.tables import labels, times

STYLES = {
    "iso": lambda t: t.strftime("%Y-%m-%d %H:%M:%S"),
    "fractions": lambda t: [str(x) for x in t],
    "day first": lambda t: t.strftime("%d.%m.%Y %H:%M"),
    "month first": lambda t: t.strftime("%m/%d/%Y %H:%M"),
    "zones": lambda t: [
        x.strftime("%Y-%m-%dT%H:%M:%S") + ("+01:00" if i % 3 else "Z") for i, x in enumerate(t)
    ],
    "seconds": lambda t: t.astype("datetime64[ns]").astype("int64") // 10**9,
    "plain": lambda t: np.arange(len(t)) * 0.25,
    "time": lambda t: t,
}


def frame_of(style, rows=900, seed=0):
    rng = np.random.default_rng(seed)
    stamps = pd.Timestamp("2024-01-03") + pd.to_timedelta(rng.integers(0, 9000, rows), unit="min")
    return pd.DataFrame(
        {
            "who": [f"c{n}" for n in rng.integers(0, 60, rows)],
            "what": rng.choice(list("abcd"), rows),
            "when": STYLES[style](pd.DatetimeIndex(stamps)),
            "unused": 1,
        }
    )


def pieces_of(path, room, **changes):
    given = {"by": "who", "time": "when", "columns": ["who", "what", "when"], "rows": 70}
    return Pieces(path, room=room, **(given | changes))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("style", list(STYLES))
def test_pieces_are_the_table_sorted(style, kind, tmp_path):
    path = tmp_path / f"log.{kind}"
    frame = frame_of(style)
    getattr(frame, f"to_{kind}")(path, index=False)
    whole = read_table(path)
    stamps = times(whole, "when")
    order = np.argsort(labels(whole, "who", "case").to_numpy(object), kind="stable")
    with Workshop() as shop:
        pieces = pieces_of(path, shop.path)
        found = [
            (labels(p, "who", "case"), labels(p, "what", "event"), times(p, "when")) for p in pieces
        ]
        assert len(found) > 5, "small buckets: the test would say nothing"
        assert {c.calendar for _, _, c in found} == {stamps.calendar}
        sizes = [len(who) for who, _, _ in found]
        assert max(sizes) < 4 * 70
        joined = []
        for who, what, clock in found:
            inside = np.argsort(who.to_numpy(object), kind="stable")
            joined += zip(who.iloc[inside], what.iloc[inside], clock.values[inside], strict=True)
        wanted = zip(whole.frame["who"].iloc[order], whole.frame["what"].iloc[order],
                     stamps.values[order], strict=True)  # fmt: skip
        assert joined == list(wanted)
        assert pieces.total == len(frame)
        assert len(pieces.findings) == len(stamps.findings)
    assert not shop.path.exists()


def test_a_sequence_is_never_cut(tmp_path):
    frame = frame_of("iso")
    frame.loc[:500, "who"] = "c7"  # longer than a bucket
    frame.to_csv(tmp_path / "log.csv", index=False)
    with Workshop() as shop:
        seen = [set(p.frame["who"]) for p in pieces_of(tmp_path / "log.csv", shop.path)]
    assert sum(map(len, seen)) == len(set().union(*seen))


@pytest.mark.parametrize("told", [True, False], ids=["nullable", "plain"])
def test_whole_numbers_with_gaps_are_named_as_in_memory(told, tmp_path):
    path = tmp_path / "log.parquet"
    frame = pd.DataFrame({"who": [1, 2, None, 10] * 50, "when": range(200)}, dtype="Int64")
    table = pa.Table.from_pandas(frame)
    parquet.write_table(table if told else table.replace_schema_metadata(), path)
    whole = labels(read_table(path), "who", "case").dropna()
    with Workshop() as shop:
        pieces = pieces_of(path, shop.path, columns=["who", "when"])
        found = [name for p in pieces for name in labels(p, "who", "case").dropna()]
    assert sorted(found) == sorted(whole)
    assert set(found) == ({"1", "2", "10"} if told else {"1.0", "2.0", "10.0"})


@pytest.mark.parametrize(
    ("row", "cell", "said"),
    [
        (650, "yesterday", 'row 651, column "when": "yesterday" is not a time'),
        (30, "", 'row 31, column "when": "" is not a time'),
    ],
)
def test_a_wrong_time_is_told_with_its_row_in_the_file(row, cell, said, tmp_path):
    frame = frame_of("iso")
    frame.loc[row, "when"] = cell
    frame.to_csv(tmp_path / "log.csv", index=False)
    with Workshop() as shop, pytest.raises(DataError, match=said):
        list(pieces_of(tmp_path / "log.csv", shop.path))


def test_numbers_and_dates_do_not_mix(tmp_path):
    frame = frame_of("plain").astype({"when": "str"})
    frame.loc[700, "when"] = "2024-01-01"
    frame.to_csv(tmp_path / "log.csv", index=False)
    with Workshop() as shop, pytest.raises(DataError, match='row 701, column "when": "2024-01-01"'):
        list(pieces_of(tmp_path / "log.csv", shop.path))


def test_a_file_that_is_cut_off_is_told(tmp_path):
    text = frame_of("iso").to_csv(index=False)
    (tmp_path / "log.csv").write_text(text[: text.rindex(",2024")])
    with (
        Workshop() as shop,
        pytest.raises(DataError, match="row 900 has 2 cells, the header has 4"),
    ):
        list(pieces_of(tmp_path / "log.csv", shop.path))


def test_a_file_that_grows_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "log.csv"
    frame_of("iso").to_csv(path, index=False)
    with Workshop() as shop:
        pieces = pieces_of(path, shop.path)
        batches = pieces._batches

        def growing():
            with path.open("a") as file:
                file.write("c1,a,2024-01-01 00:00:00,1\n")
            yield from batches()

        pieces._batches = growing
        with pytest.raises(DataError, match="changed while it was read"):
            list(pieces)


# Parts on disk -----------------------------------------------------------------------------------


def packed(lengths, seed):
    rng, steps = np.random.default_rng(seed), sum(lengths)
    starts = torch.zeros(steps, dtype=torch.bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    return Packed(
        starts,
        tokens=torch.from_numpy(rng.integers(0, 9, (steps, 2)).astype(np.int32)),
        reals=torch.from_numpy(rng.normal(size=(steps, 3)).astype(np.float32)),
        targets={
            "token": torch.from_numpy(rng.integers(-1, 9, steps).astype(np.int32)),
            "gap": torch.from_numpy(rng.normal(size=steps).astype(np.float32)),
        },
    )


def test_a_part_on_disk_is_the_part(tmp_path):
    pieces = [packed([3, 5], 0), packed([1], 1), packed([7, 2], 2)]
    writer = PartWriter(tmp_path)
    for piece in pieces:
        writer.append(piece)
    stored = writer.finish()
    assert isinstance(stored, Stored)
    assert not list(tmp_path.iterdir()), "the files go with the last reader"
    assert stored.lengths.tolist() == [3, 5, 1, 7, 2]
    at = torch.tensor([[0, 8, 17, -1], [9, 9, 1, 0]])
    joined = Packed(
        torch.cat([p.starts for p in pieces]),
        tokens=torch.cat([p.tokens for p in pieces]),
        reals=torch.cat([p.reals for p in pieces]),
        targets={
            name: torch.cat([p.targets_as_stored[name] for p in pieces])
            for name in ("token", "gap")
        },
    )
    for a, b in zip(gather(stored, at)[:3], gather(joined, at)[:3], strict=True):
        assert torch.equal(a, b)
    for name, target in gather(joined, at).targets.items():
        torch.testing.assert_close(gather(stored, at).targets[name], target, equal_nan=True)


def test_a_part_without_steps_is_empty(tmp_path):
    writer = PartWriter(tmp_path)
    writer.append(Packed(torch.zeros(0, dtype=torch.bool)))
    assert len(writer.finish()) == 0
