"""Snapping to centroids, around any cell; and automata read off trained networks."""

from dataclasses import replace

import pytest
import torch
from laws import assert_near, reset_law, split_law
from tomita import TOMITA
from torch import nn
from torch.nn import functional as F

from stepscan.analyze.automata import difference, extract
from stepscan.mixers import MIXERS, from_dict, to_dict
from stepscan.mixers.state_regularized import StateRegularizedConfig as Regularized
from stepscan.models import ModelConfig, NextToken

WIDTH = 8
CELLS = ["gru", "lstm", "elman", "leaky_rnn", "para_gru", "para_lstm", "plrnn", "al_rnn"]


@pytest.mark.parametrize("name", CELLS)
def test_laws_around_every_cell(name):
    config = Regularized(cell=MIXERS[name](), temperature=0.3)
    mixer, x = config.build(WIDTH).double(), torch.randn(2, 20, WIDTH).double()
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    resets, params = torch.rand(2, 20) < 0.15, list(mixer.parameters())
    split_law(step, (x,), mixer.init_state(2), [0, 1, 9], resets=resets, params=params)
    reset_law(step, (x,), mixer.init_state(2), resets, params=params)


def test_a_wider_cell_keeps_its_output_map_once():
    mixer = Regularized(cell=MIXERS["elman"](expansion=1.5)).build(WIDTH).double()
    x = torch.randn(2, 12, WIDTH).double()
    y, state = mixer(x)
    assert state.hidden.shape == (2, 12)
    assert_near(y[:, -1], state.hidden @ mixer.out.weight.mT, what="outputs")
    weights = mixer.state_dict().values()
    assert len({w.data_ptr() for w in weights}) == len(weights)


def test_it_follows_the_paper():
    """h = sum_k alpha_k s_k with alpha = softmax(u . s_k / tau), u the GRU's own next state."""
    mixer = Regularized(centroids=5, temperature=0.7).build(WIDTH).double()
    module = nn.GRUCell(WIDTH, WIDTH).double()
    with torch.no_grad():
        for mine, theirs in zip(mixer.inner.cells[0](), module.parameters(), strict=True):
            mine.copy_(theirs)
    x, h, ys = torch.randn(2, 12, WIDTH).double(), torch.zeros(2, WIDTH).double(), []
    for x_t in x.unbind(1):
        u = module(x_t, h)
        alpha = torch.stack([(u * s).sum(1) / 0.7 for s in mixer.centroids], 1).softmax(1)
        h = alpha @ mixer.centroids
        ys.append(h)
    y, state = mixer(x)
    assert_near((y, state.hidden), (torch.stack(ys, 1), h), what="outputs")


def test_cold_states_are_centroids_and_those_of_an_lstm_keep_their_cell():
    mixer = Regularized(cell=MIXERS["lstm"](), temperature=1e-6).build(WIDTH).double()
    y, state = mixer(torch.randn(2, 12, WIDTH).double())
    assert_near(mixer.centroids[mixer.nearest(y)], y, what="hidden")
    away = (state.cell[:, None] - mixer.centroids).abs().amax(2).min()
    assert away > 1e-3


def test_a_config_inside_of_a_config_survives_files_and_patterns():
    deep = MIXERS["slstm"]()
    config = Regularized(cell=MIXERS["cell_factory"](attend=deep), centroids=3)
    assert from_dict(to_dict(config)) == config
    assert to_dict(config)["cell"]["attend"] == to_dict(deep)
    pattern = "state_regularized[cell='lstm', centroids=4] cell_factory[attend={'name': 'slstm'}]"
    model = ModelConfig(head=NextToken(vocab=5), layers=pattern, width=WIDTH, tokens=(5,))
    assert ModelConfig.from_dict(model.to_dict()) == model
    first, second = model.mixers
    assert first == Regularized(cell=MIXERS["lstm"](), centroids=4)
    assert (second.attend.layer, second.attend.layers) == (1, 2)  # told its depth, too
    with pytest.raises(ValueError, match="Did you mean 'lstm'"):
        from_dict({"name": "state_regularized", "cell": "lstn"})
    with pytest.raises(ValueError, match="unknown field of GRUConfig 'dept'"):
        from_dict({"name": "state_regularized", "cell": {"name": "gru", "dept": 2}})


@pytest.mark.plain
def test_errors_say_what_to_fix():
    for options, message in (
        ({"centroids": 1}, "at least 2 centroids"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"cell": MIXERS["gla"]()}, "want a mixer of one nonlinear cell .* got gla"),
        ({"cell": MIXERS["gru"](depth=2)}, "gru: want depth=1"),
    ):
        with pytest.raises(ValueError, match=message):
            Regularized(**options).build(WIDTH)


class Acceptor(nn.Module):
    """Says after each symbol, and before the first one, whether the string is in the language."""

    def __init__(self, config, width=32):
        super().__init__()
        self.symbols = nn.Embedding(2, width)
        self.mixer = config.build(width)
        self.out = nn.Linear(width, 1)

    def forward(self, strings):
        h, _ = self.mixer(self.symbols(strings))
        h = F.pad(h, (0, 0, 1, 0))  # the fresh state is zero
        return self.out(h)[..., 0], h


def strings_of(n, T, rng):
    """Random strings with a probability of 1 of their own: languages are sparse among even ones."""
    return (torch.rand(n, T, generator=rng) < torch.rand(n, 1, generator=rng) * 1.1).long()


def positives(automaton, n, T, rng):
    """Walks through states that may still accept: else most strings of some languages are dead."""
    alive = {s for s, nexts in enumerate(automaton.step) if automaton.accept[s] or set(nexts) - {s}}
    rows = []
    for first in torch.rand(n, T, generator=rng):
        state, row = 0, []
        for number in first.tolist():
            symbol = int(number < 0.5)
            if automaton.step[state][symbol] not in alive and number > 0.02:
                symbol = 1 - symbol
            state = automaton.step[state][symbol]
            row.append(symbol)
        rows.append(row)
    return torch.tensor(rows)


def labels(automaton, strings):
    return torch.tensor([automaton.prefixes(row) for row in strings.tolist()])


TRAINED, LONG, STEPS, COLD = 16, 64, 2000, 0.05


def learn(number, seed):
    """A network trained on prefixes of strings of 16 symbols; it cools from halfway on."""
    target, rng = TOMITA[number], torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    config = Regularized(centroids=10, temperature=1.0)
    model = Acceptor(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for i in range(STEPS):
        temperature = COLD ** min(1.0, max(0.0, (i / STEPS - 0.5) / 0.4))
        model.mixer.config = replace(config, temperature=temperature)
        both = strings_of(32, TRAINED, rng), positives(target, 32, TRAINED, rng)
        strings = torch.cat(both)
        said, _ = model(strings)
        loss = F.binary_cross_entropy_with_logits(said, labels(target, strings).float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def read_off(model, strings):
    with torch.no_grad():
        said, h = model(strings)
        states = model.mixer.nearest(h) + 1
        states[:, 0] = 0
    return extract(strings, states, said > 0, alphabet=2), said > 0


@pytest.mark.slow
@pytest.mark.xfail(
    strict=False,
    reason="With cooling 3 and 7 not learned (0.70, 0.84), others not run. "
    "Without: at temperature 0.2 for 1000 steps language 1 "
    "right, 2 to 4 not learned (0.77, 0.70, 0.82 of prefixes); at 1.0 for 2000 steps language 3 "
    "learned (1.00), but its automaton wrong.",
)
def test_automata_of_tomitas_languages_are_read_off_trained_networks(record_property):
    right, agreement = [], {}
    for number, target in TOMITA.items():
        model, rng = learn(number, seed=number), torch.Generator().manual_seed(100)
        both = strings_of(300, TRAINED, rng), positives(target, 300, TRAINED, rng)
        found, _ = read_off(model, torch.cat(both))
        if difference(found, target) is None:
            right.append(number)
        both = strings_of(300, LONG, rng), positives(target, 300, LONG, rng)
        strings = torch.cat(both)
        _, said = read_off(model, strings)
        agreement[number] = (labels(found, strings) == said)[:, -1].float().mean().item()
    record_property("right", right)
    record_property("agreement", agreement)
    assert len(right) >= 5, (right, agreement)
    assert min(agreement[number] for number in right) >= 0.99, (right, agreement)
