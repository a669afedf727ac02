"""XES logs are read as the same log in csv would be; what is not whole is refused."""

import gzip
from xml.sax.saxutils import escape

import numpy as np
import pandas as pd
import pytest
from made_up_data import events_frame

from stepscan.data import DataError, DataOptions, open_dataset, read_table
from stepscan.data.xes import _count_traces

pytest.importorskip("r4pm", reason="wants the extra events: pip install 'stepscan[events]'")
pytest.importorskip("polars", reason="wants the extra events: pip install 'stepscan[events]'")

HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<log xes.version="1.0" xes.features="" xmlns="http://www.xes-standard.org/">
<extension name="Concept" prefix="concept" uri="http://www.xes-standard.org/concept.xesext"/>
<extension name="Time" prefix="time" uri="http://www.xes-standard.org/time.xesext"/>
"""


def as_xes(frame, zone="+00:00"):
    """A small valid log: one trace a case, one event a row, `who` as an attribute of the event."""
    lines = [HEAD]
    for case, rows in frame.groupby("case", sort=False):
        lines.append(f'<trace><string key="concept:name" value="{escape(case)}"/>')
        for row in rows.itertuples():
            time = pd.Timestamp(row.timestamp).tz_localize("UTC").tz_convert(zone)
            lines.append(
                f'<event><string key="concept:name" value="{escape(row.activity)}"/>'
                f'<string key="org:resource" value="{escape(row.who)}"/>'
                f'<date key="time:timestamp" value="{time.isoformat()}"/></event>'
            )
        lines.append("</trace>")
    return "\n".join([*lines, "</log>\n"])


@pytest.fixture
def log():
    frame = events_frame()
    return frame.assign(who=np.where(frame.index % 3, "ann & co", "bob <x>"))


@pytest.mark.parametrize("name", ["log.xes", "log.XES", "log.xes.gz"])
def test_a_log_in_xes_equals_the_same_in_csv(log, name, tmp_path):
    text = as_xes(log, zone="Asia/Kolkata").encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    renamed = log.rename(
        columns={
            "case": "case:concept:name",
            "activity": "concept:name",
            "timestamp": "time:timestamp",
            "who": "org:resource",
        }
    )
    renamed.to_csv(tmp_path / "log.csv", index=False)
    told = DataOptions(attributes=("org:resource",))
    xes, csv = open_dataset(tmp_path / name, told), open_dataset(tmp_path / "log.csv", told)
    assert xes.schema == csv.schema
    assert xes.schema.activity == "concept:name"
    assert len(xes.parts["train"]) > 100
    for part, packed in xes.parts.items():
        assert packed.tokens.equal(csv.parts[part].tokens)
        assert packed.reals.equal(csv.parts[part].reals)


def test_columns_come_in_one_order(log, tmp_path):
    path = tmp_path / "log.xes"
    path.write_text(as_xes(log))
    columns = ["case:concept:name", "concept:name", "time:timestamp", "org:resource"]
    assert read_table(path).columns == columns


def test_what_is_no_whole_log_is_refused(log, tmp_path):
    text = as_xes(log)
    path = tmp_path / "log.xes"
    path.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"log.xes: the file breaks off before </log>"):
        open_dataset(path)
    path.write_text(HEAD + "</log>\n")
    with pytest.raises(DataError, match="the log holds no events"):
        open_dataset(path)
    path.write_text("case,activity</log>")
    with pytest.raises(DataError, match=r"log.xes: not a readable XES log"):
        open_dataset(path)
    packed = tmp_path / "log.xes.gz"
    packed.write_bytes(gzip.compress(text.encode())[:500])
    with pytest.raises(DataError, match="not a whole gzip file"):
        open_dataset(packed)
    packed.write_bytes(b"case,activity\n")
    with pytest.raises(DataError, match="not a whole gzip file"):
        open_dataset(packed)


def test_a_trace_without_events_is_told(log, tmp_path):
    path = tmp_path / "log.xes"
    empty = '<trace><string key="concept:name" value="empty"/></trace>\n</log>'
    path.write_text(as_xes(log).replace("</log>", empty))
    found = open_dataset(path)
    assert any("1 of 41 traces hold no events" in line for line in found.findings)


@pytest.mark.parametrize("size", [7, 16, 64, 1 << 20])
def test_traces_are_counted_across_blocks(size, log, tmp_path, monkeypatch):
    monkeypatch.setattr("stepscan.data.xes.BLOCK", size)
    path = tmp_path / "log.xes"
    path.write_text(as_xes(log))
    assert _count_traces(path) == log["case"].nunique()
