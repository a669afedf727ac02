import pytest
import torch
from laws import assert_near
from torch import nn

from stepscan.generate.constrained import Trie, spelled, trie_beams


@pytest.fixture
def catalogue():
    return torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 2], [3, 1, 2], [3, 1, 2], [4, 4, 4]])


class Speller(nn.Module):
    """Says symbols by a GRU that reads those said."""

    def __init__(self, symbols=5):
        super().__init__()
        torch.manual_seed(3)
        self.cell, self.out = nn.GRUCell(symbols, 6), nn.Linear(6, symbols)

    def forward(self, said, h):
        if said is not None:
            h = self.cell(nn.functional.one_hot(said, 5).float(), h)
        return 3 * self.out(h), h


def exact(model, h, catalogue):
    """Probability of every different sequence, symbol by symbol among what may follow."""
    found = {}
    for row in {tuple(r) for r in catalogue.tolist()}:
        state, said, total = h, None, 0.0
        for m, symbol in enumerate(row):
            logits, state = model(said, state)
            follow = {r[m] for r in catalogue.tolist() if tuple(r[:m]) == row[:m]}
            chance = torch.full((5,), -torch.inf)
            chance[list(follow)] = logits[0, list(follow)]
            total += float(chance.log_softmax(0)[symbol])
            said = torch.tensor([symbol])
        found[row] = total
    return found


@torch.no_grad()
def test_wide_beams_rank_the_whole_trie_exactly(catalogue):
    model, trie = Speller(), Trie(catalogue, 5)
    h = torch.randn(3, 6)
    beams = trie_beams(model, h, trie, batch=3, width=8)
    paths = {int(leaf): tuple(row) for leaf, row in zip(trie.leaf, catalogue.tolist(), strict=True)}
    for b in range(3):
        want = exact(model, h[b : b + 1], catalogue)
        got = {
            paths[leaf]: score
            for leaf, score in zip(beams.leaves[b].tolist(), beams.scores[b].tolist(), strict=True)
            if leaf >= 0
        }
        assert set(got) == set(want)
        assert_near(
            torch.tensor([got[k] for k in want]),
            torch.tensor(list(want.values())),
            what="log probabilities",
        )
        assert sum(torch.tensor(list(got.values())).exp()) == pytest.approx(1, abs=1e-5)
        real = [s for s in beams.scores[b].tolist() if s > -torch.inf]
        assert real == sorted(real, reverse=True)


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_beams_say_only_what_exists(seed, width):
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(5, (9, 4), generator=rng)
    model, trie = Speller(), Trie(codes, 5)
    h = torch.randn(6, 6, generator=rng)
    beams = trie_beams(model, h, trie, batch=6, width=width)
    for row in spelled(trie, beams, torch.arange(9.0)):
        assert row
        assert set(row) <= set(range(9))
        assert len(set(row)) == len(row)
    free = []  # without the trie the likeliest symbols spell what does not exist
    state, said = h, None
    for _ in range(4):
        logits, state = model(said, state)
        said = logits.argmax(-1)
        free.append(said)
    assert any(
        tuple(row) not in {tuple(c) for c in codes.tolist()} for row in zip(*free, strict=True)
    )


def test_items_of_one_leaf_are_told_apart_by_the_order(catalogue):
    trie = Trie(catalogue, 5)
    assert trie.leaves == 5
    assert trie.leaf[3] == trie.leaf[4]
    with torch.no_grad():
        beams = trie_beams(Speller(), torch.randn(1, 6), trie, batch=1, width=5)
    for order, first in ((torch.arange(6.0), 4), (-torch.arange(6.0), 3)):
        (row,) = spelled(trie, beams, order)
        assert sorted(row) == list(range(6))
        at = row.index(first)
        assert row[at + 1] == 7 - first


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (torch.zeros(0, 3).long(), "want codes"),
        (torch.tensor([[0, 5]]), "symbols from 0 to 4, got 0 to 5"),
    ],
)
def test_what_is_no_trie_is_refused(codes, said):
    with pytest.raises(ValueError, match=said):
        Trie(codes, 5)
