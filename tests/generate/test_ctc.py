"""CTC: the loss and both decoders against sums over every path."""

import itertools
import math

import pytest
import torch

from stepscan.generate.ctc import Beam, Greedy, beam, greedy
from stepscan.models import Ctc
from stepscan.models.inputs import Inputs
from stepscan.train.objectives import loss


def collapse(path):
    """Repeats dropped, then blanks: the definition, another way round than in the library."""
    return tuple(s for s, _ in itertools.groupby(path) if s != 0)


def by_paths(log_p):
    """The probability of every text: each of V^T paths belongs to one."""
    steps, symbols = log_p.shape
    found = {}
    for path in itertools.product(range(symbols), repeat=steps):
        p = math.exp(sum(float(log_p[t, s]) for t, s in enumerate(path)))
        found[collapse(path)] = found.get(collapse(path), 0.0) + p
    return found


def random_log_p(steps, symbols, seed, sharp=1.0):
    rng = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(steps, symbols, generator=rng).double()).log_softmax(-1)


def targets(texts, lengths, total):
    symbol = torch.full((1, total), -1)
    end = torch.full((1, total), -1)
    start = 0
    for text, length in zip(texts, lengths, strict=True):
        symbol[0, start : start + len(text)] = torch.tensor(text, dtype=torch.long)
        end[0, start + length - 1] = length
        start += length
    return {"symbol": symbol, "end": end}


@pytest.mark.parametrize("text", [(1,), (1, 2), (2, 2), (1, 2, 1), ()])
def test_the_loss_is_the_sum_over_all_paths_that_spell_the_text(text):
    logits = torch.randn(1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = -math.log(by_paths(logits[0].log_softmax(-1))[text])
    found = loss(Ctc(symbols=2), logits, targets([text], [5], 5))
    assert float(found.mean) * max(1, len(text)) == pytest.approx(wanted, rel=1e-9)


def test_sequences_of_a_batch_are_spelled_one_by_one():
    logits = torch.randn(1, 12, 3, dtype=torch.float64, requires_grad=True)
    texts, lengths = [(1, 2), (2,), (1, 1)], [4, 3, 5]
    found = loss(Ctc(symbols=2), logits, targets(texts, lengths, 12))
    wanted, start = 0.0, 0
    for text, n in zip(texts, lengths, strict=True):
        wanted -= math.log(by_paths(logits[0, start : start + n].detach().log_softmax(-1))[text])
        start += n
    assert found.mean.item() * 5 == pytest.approx(wanted, rel=1e-9)
    found.mean.backward()
    assert logits.grad.abs().sum(-1).min() > 0


def test_a_sequence_that_began_before_the_batch_takes_no_part():
    logits = torch.randn(1, 6, 3, requires_grad=True)
    told = targets([(1,)], [6], 6)
    told["end"][0, 5] = 9
    found = loss(Ctc(symbols=2), logits, told)
    assert found.mean.item() == 0
    assert int(found.sums["symbol"].count) == 0
    found.mean.backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_likeliest_text(seed):
    log_p = random_log_p(5, 3, seed)
    exact = by_paths(log_p)
    assert sum(exact.values()) == pytest.approx(1)
    best = max(exact, key=exact.get)
    found = Beam(width=1000).read(log_p)
    assert found.text == tuple(beam(log_p, 1000)) == best
    assert math.exp(found.log_probability) == pytest.approx(exact[best])
    for text, blank, symbol in found.texts:
        assert math.exp(blank) + math.exp(symbol) == pytest.approx(exact[text])


def test_the_likeliest_path_is_not_always_the_likeliest_text():
    """The known case: a blank is likelier at every step, but most paths spell an a."""
    log_p = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).double().log()
    assert greedy(log_p) == []
    assert beam(log_p, 8) == [1]


def test_greedy_drops_repeats_then_blanks():
    path = [1, 1, 0, 1, 2, 2, 0, 0, 2]
    scores = torch.eye(3)[path]
    assert greedy(scores) == [1, 1, 2, 2] == list(collapse(path))
    assert beam(scores.double().clamp_min(1e-9).log(), 8) == [1, 1, 2, 2]


@pytest.mark.parametrize("cuts", [[0], [1], [3, 3, 7], list(range(1, 12))], ids=str)
def test_a_text_grows_the_same_however_it_is_cut(cuts):
    log_p = random_log_p(12, 4, 3, sharp=2.0)
    pieces = torch.tensor_split(log_p, cuts)
    by_step, by_beam = Greedy(), Beam(6)
    for piece in pieces:
        by_step, by_beam = by_step.read(piece), by_beam.read(piece)
    assert by_step == Greedy().read(log_p)
    assert by_beam == Beam(6).read(log_p)
    with pytest.raises(ValueError, match="width >= 1"):
        beam(log_p, 0)


def test_the_head_says_a_blank_and_the_symbols():
    head = Ctc(symbols=4).build(8, 0, None)
    assert head(torch.zeros(2, 3, 8), Inputs()).shape == (2, 3, 5)
    with pytest.raises(ValueError, match="symbols >= 1"):
        Ctc(symbols=0)
