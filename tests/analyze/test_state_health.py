"""States that are sound and states that are not, each told from the others."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

from stepscan.analyze.state_health import VERDICTS, collapse_report, mitigated
from stepscan.mixers import MIXERS
from stepscan.mixers.gla import GLAConfig
from stepscan.models import ModelConfig, NextToken, SequenceModel

LENGTHS = 32, 64, 256
WIDTH = 8


class State(NamedTuple):
    memory: torch.Tensor


class Plain(nn.Module):
    """h = a h + x, one channel after the other with its own a; the outputs may be logits of h."""

    def __init__(self, a, vocab=None, weight=1.0):
        super().__init__()
        self.a = torch.as_tensor(a).expand(WIDTH)
        self.vocab, self.weight = vocab, weight

    def forward(self, inputs, state=None, resets=None):
        x = nn.functional.one_hot(inputs, WIDTH).float() if self.vocab else inputs
        h = x.new_zeros(len(x), WIDTH) if state is None else state.memory
        seen = []
        for x_t in x.unbind(1):
            h = self.a * h + x_t
            seen.append(h)
        y = torch.stack(seen, 1)
        return (y * self.weight if self.vocab else y), State(h)


def signal(seed=0):
    return torch.randn(16, LENGTHS[-1], WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("a", "verdict"),
    [(0.9, "healthy"), (0.0, "healthy"), (1.0, "never forgets"), (1.05, "explodes")],
)
def test_the_verdict_on_a_state(a, verdict):
    health = collapse_report(Plain(a), signal(), LENGTHS)
    assert health.verdict == verdict
    assert health.words.startswith(f"{verdict.capitalize()}: {VERDICTS[verdict]}")
    assert health.losses is None


def test_a_state_that_is_not_finite_explodes():
    x = signal()
    x[:, 100] = torch.inf
    assert collapse_report(Plain(0.9), x, LENGTHS).verdict == "explodes"


def test_the_horizon_is_that_of_the_decay():
    (part,) = collapse_report(Plain(0.9), signal(), LENGTHS).parts
    assert part.horizon == pytest.approx(-1 / math.log(0.9), rel=1e-3)
    assert part.name == ".memory"
    assert not part.outliers


def test_what_is_kept_is_the_product_of_the_decays():
    """Measured through the mixer, computed from its weights."""
    torch.manual_seed(0)
    mixer = GLAConfig(heads=2).build(WIDTH).double()
    x = signal().double()
    health = collapse_report(mixer, x, LENGTHS, rows=1)
    decay = nn.functional.logsigmoid(mixer._heads(mixer.decay(x[:1, 32:]))) / 16
    for i, d in enumerate(health.distances):
        left = decay[0, :d].sum(0).exp()  # [H K]
        found = health.parts[0].kept[i].view(2, 4)  # [H V]: over all keys
        assert ((left.min(1).values[:, None] <= found + 1e-9) & (found > 0)).all()
        assert (found <= left.max(1).values[:, None] + 1e-9).all()


def test_one_channel_out_of_many_is_found():
    a = [0.9] * WIDTH
    a[3] = 1.0
    x = signal() + 1.0
    (part,) = collapse_report(Plain(torch.tensor(a)), x, LENGTHS).parts
    assert part.outliers == (3,)
    assert part.filling == pytest.approx(1 / WIDTH)


@pytest.mark.parametrize(
    ("a", "weight", "verdict"), [(1.0, 0.3, "collapses"), (0.5, 0.3, "healthy")]
)
def test_the_verdict_on_a_loss(a, weight, verdict):
    """Logits that are sums of all that was read: too sure of themselves, the longer the worse."""
    ids = torch.randint(WIDTH, (16, LENGTHS[-1]), generator=torch.Generator().manual_seed(0))
    health = collapse_report(Plain(a, WIDTH, weight), ids, LENGTHS)
    assert health.verdict == verdict
    assert len(health.losses) == len(LENGTHS)
    assert health.losses[0] == pytest.approx(math.log(WIDTH), rel=0.1)


def test_chance_is_not_taken_for_collapse():
    """Two rows whose losses differ by luck alone."""
    rng = torch.Generator().manual_seed(2)
    ids = torch.randint(WIDTH, (2, LENGTHS[-1]), generator=rng)
    assert collapse_report(Plain(0.0, WIDTH, 1.0), ids, LENGTHS).verdict == "healthy"


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("gla", "healthy"),
        ("linear_attention", "never forgets"),
        ("gru", "healthy"),
        ("attention", "healthy"),
    ],
)
def test_mixers_with_their_first_weights(name, verdict):
    torch.manual_seed(0)
    x = torch.randn(4, 256, 16)
    health = collapse_report(MIXERS[name]().build(16), x, LENGTHS)
    assert health.verdict == verdict
    if name == "attention":  # it grows: nothing is lost, and nothing is to be judged
        assert not [p for p in health.parts if "key" in p.name]


def overfull():
    """A model whose decays were learned away: it accumulates."""
    torch.manual_seed(0)
    layers = (GLAConfig(heads=2),)
    config = ModelConfig(head=NextToken(vocab=8), layers=layers, width=16, tokens=(8,))
    model = SequenceModel(config)
    with torch.no_grad():
        model.blocks[0].mixer.decay[1].bias.fill_(12.0)
    return model


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, "never forgets"),
        ({"forget_scale": 4e5}, "healthy"),
        ({"state_norm": 1.0}, "healthy"),
        ({"memory_window": 16}, "healthy"),
    ],
    ids=str,
)
def test_each_bound_heals_a_memory_that_never_forgets(options, verdict):
    ids = torch.randint(8, (8, 256), generator=torch.Generator().manual_seed(1))
    health = collapse_report(mitigated(overfull(), **options), ids, LENGTHS)
    state_alone = health.verdict if health.verdict != "collapses" else "never forgets"
    assert state_alone == verdict


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="causal"):
        collapse_report(MIXERS["hydra"]().build(16), torch.zeros(1, 64, 16), (8, 16))
    with pytest.raises(ValueError, match="ascending"):
        collapse_report(Plain(0.9), signal(), (64, 32))
    with pytest.raises(ValueError, match="of 512 steps"):
        collapse_report(Plain(0.9), signal(), (32, 512))
    ids = torch.zeros(2, 256, dtype=torch.long)
    with pytest.raises(ValueError, match="second half"):
        collapse_report(Plain(0.5, WIDTH), ids, LENGTHS, targets=torch.full_like(ids, -1))
    config = ModelConfig(head=NextToken(vocab=8), layers="gru", width=16, tokens=(8,))
    with pytest.raises(ValueError, match="gla, mamba2"):
        mitigated(SequenceModel(config), memory_window=4)
