import numpy as np
import pandas as pd
import pytest
import torch
from made_up_catalogue import catalogue, ratings

from stepscan.data.base import DataError, DataOptions
from stepscan.data.item_texts import (
    CLOSE,
    END,
    KEY,
    LONGEST,
    PLACES,
    VALUE,
    ItemTextSchema,
    Spelled,
)
from stepscan.data.open import open_dataset, read_schema


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    items = catalogue()
    taken, _ = ratings(items, users=30, steps=6, new=0.3)
    taken.to_csv(folder / "taken.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)
    return open_dataset(folder / "taken.csv", DataOptions(items=str(folder / "items.csv")))


def test_an_item_is_its_keys_and_values_in_order(dataset):
    schema = dataset.schema
    pairs = [("title", "red otter"), ("style name", ""), ("note", "x y " * LONGEST)]
    said = schema.sentence(pairs)
    title, red, note = schema.words("title"), schema.words("red otter"), schema.words("note")
    head = [(w, KEY) for w in title] + [(w, VALUE) for w in red] + [(w, KEY) for w in note]
    assert said[: len(head)] == head
    assert said[-1] == (END, CLOSE)
    assert [part for _, part in said[len(head) : -1]] == [VALUE] * LONGEST
    assert schema.fields == ("title", "style name")


def test_histories_are_spelled_out_word_by_word(dataset):
    """By hand from the ids: words, parts, places; asked at ends only."""
    schema, packed = dataset.schema, dataset.parts["train"]
    sentences = schema.sentences()
    tokens, _ = packed.inputs_at(torch.arange(len(packed)))
    targets = packed.targets_at(torch.arange(len(packed)))
    at = 0
    for user in packed.histories():
        assert packed.starts[at]
        for place, item in enumerate(user.tolist(), 1):
            want = [tuple(w) for w in sentences[item].tolist() if w[1]]
            here = tokens[at : at + len(want)]
            assert [tuple(w) for w in here[:, :2].tolist()] == want
            assert here[:, 2].unique().tolist() == [place]
            ends = targets["item"][at : at + len(want)].tolist()
            assert ends == [-1] * (len(want) - 1) + [item]
            after = user[place].item() if place < len(user) else -1
            assert targets["token"][at + len(want) - 1].item() == after
            assert (targets["token"][at : at + len(want) - 1] == -1).all()
            at += len(want)
    assert at == len(packed)


def test_parts_ask_for_the_last_items(dataset):
    for part in ("valid", "test"):
        packed = dataset.parts[part]
        last, wanted = packed.pairs()
        assert len(wanted) == len(packed.begins) == 30
        ends = torch.stack([user[-1] for user in packed.histories()])
        assert torch.equal(last, ends)
    valid, test = dataset.parts["valid"], dataset.parts["test"]
    assert torch.equal(valid.pairs()[1], test.pairs()[0])


def test_items_of_the_test_alone_are_new(dataset):
    schema = dataset.schema
    trained = torch.cat(dataset.parts["train"].histories()).unique()
    assert trained.tolist() == list(range(1, schema.trained + 1))
    assert (dataset.parts["test"].pairs()[1] > schema.trained).all()
    assert len(schema.items) == len(catalogue())
    assert any("were never taken in training" in line for line in dataset.findings)


def test_only_the_latest_items_are_kept(dataset):
    schema = dataset.schema
    many = torch.arange(1, 2 * PLACES + 8) % schema.trained + 1
    starts = torch.arange(len(many)) == 0
    wanted = torch.full_like(many, -1)
    wanted[-1] = 3
    long = Spelled(schema.sentences(), starts, many, wanted)
    kept = long.latest()
    assert torch.equal(kept.items, many[-PLACES:])
    assert kept.pairs()[1].tolist() == [3]
    places = long.inputs_at(torch.arange(len(long)))[0][:, 2]
    assert (places.min(), places.max()) == (1, PLACES)
    few = dataset.parts["test"].latest(users=7)
    assert len(few.begins) == 7


def test_a_schema_comes_back_from_plain_data(dataset):
    saved = dataset.schema.to_dict()
    assert read_schema(saved) == dataset.schema
    with pytest.raises(DataError, match="not a tokenizer"):
        ItemTextSchema.from_dict(saved | {"bpe": "{}"}).words("x")


def test_further_items_may_lack_columns_and_use_any_letters(dataset):
    schema = dataset.schema
    more = schema.with_items(
        pd.DataFrame({"item": ["new", schema.items[0]], "title": ["Пурпур 日本", "red"], "x": 1})
    )
    assert more.items == (*schema.items, "new")
    assert more.texts[-1] == ("Пурпур 日本", "")
    assert more.texts[:-1] == schema.texts
    assert more.tokens == schema.tokens
    assert all(word < schema.tokens[0] for word in schema.words("Пурпур 日本"))


def test_other_orders_keep_the_words_of_each_attribute(dataset):
    schema = dataset.schema
    plain, other = schema.sentences(), schema.sentences(seed=1, missing=0.0)
    assert not torch.equal(plain, other)
    assert torch.equal(plain.sort(1).values, other.sort(1).values)
    fewer = schema.sentences(seed=1, missing=0.5)
    assert (fewer[..., 1] > 0).sum() < (plain[..., 1] > 0).sum()
    assert ((fewer[..., 1] == VALUE).sum(1)[1:] > 0).all(), "something is always said of an item"


def test_atomic_files_have_typed_headers(tmp_path):
    (tmp_path / "a.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n"
        + "".join(f"{u}\t{i}\t{10 * u + i}\n" for u in range(3) for i in range(4))
    )
    (tmp_path / "a.item").write_text(
        "item_id:token\tmovie_title:token_seq\n" + "".join(f"{i}\tfilm {i}\n" for i in range(5))
    )
    found = open_dataset(
        tmp_path / "a.inter", DataOptions(kind="interactions", items=str(tmp_path / "a.item"))
    )
    assert found.schema.fields == ("movie title",)
    assert set(found.schema.items) == {"0", "1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item,title\nz1,a b\nz2,c\n", "describes none of the items"),
        ("item\ni0001\n", "want a table separated by|found one column"),
        ("name,title\ni0001,a\n", "cannot tell the column with the item"),
    ],
)
def test_a_catalogue_that_does_not_fit_is_one_clear_line(tmp_path, text, said):
    taken, _ = ratings(catalogue(), users=8, steps=5, new=0.1)
    taken.to_csv(tmp_path / "taken.csv", index=False)
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        open_dataset(tmp_path / "taken.csv", DataOptions(items=str(tmp_path / "items.csv")))


def test_items_that_are_not_described_are_counted(tmp_path):
    items = catalogue()
    taken, _ = ratings(items, users=8, steps=5, new=0.1)
    taken.to_csv(tmp_path / "taken.csv", index=False)
    used = np.array(sorted(taken["item"].unique()))
    items[~items["item"].isin(used[:3])].to_csv(tmp_path / "items.csv", index=False)
    found = open_dataset(tmp_path / "taken.csv", DataOptions(items=str(tmp_path / "items.csv")))
    assert any(line.startswith("3 items are not described") for line in found.findings)
