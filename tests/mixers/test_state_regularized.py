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
from stepscan.tasks.tomita import Tomita

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


def test_centroids_are_placed_where_hidden_states_lie():
    mixer = Regularized(centroids=4).build(WIDTH)
    corners = 3 * torch.eye(WIDTH)[:4]
    hidden = corners.repeat(25, 1)[torch.randperm(100)] + 0.05 * torch.randn(100, WIDTH)
    mixer.place(hidden.view(10, 10, WIDTH), torch.Generator().manual_seed(0))
    assert torch.cdist(corners, mixer.centroids).amin(1).max() < 0.1
    assert mixer.centroids.requires_grad


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


TRAINED, LONG, FREE, SNAPPED, WARM, COLD = 16, 64, 600, 800, 0.5, 0.05


def prefixes(number, n, length, rng):
    """Strings, and for each prefix, from the empty one on, whether it is in the language."""
    batch = Tomita(number=number, length=length, begin=False).draw(n, rng)
    return batch.input, F.pad(batch.target, (1, 0), value=TOMITA[number].accept[0])


def fit(model, number, rng, *, steps, done):
    """Adam until `done(share of right answers, smoothed)`."""
    optimizer, right = torch.optim.Adam(model.parameters(), lr=3e-3), 0.0
    for _ in range(steps):
        strings, label = prefixes(number, 64, TRAINED, rng)
        said, _ = model(strings)
        loss = F.binary_cross_entropy_with_logits(said, label.float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        right = 0.9 * right + 0.1 * ((said > 0) == label).double().mean().item()
        if done(right):
            return


def learn(number, seed):
    """A GRU trained on strings of 16 symbols; then with centroids, colder while it is right."""
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Acceptor(MIXERS["gru"]())
    fit(model, number, rng, steps=FREE, done=lambda right: right > 0.998)
    snapped = Regularized(centroids=10, temperature=WARM).build(32)
    snapped.inner.load_state_dict(model.mixer.state_dict())
    snapped.place(model(prefixes(number, 64, TRAINED, rng)[0])[1][:, 1:], rng)
    model.mixer = snapped

    def cooler(right):
        tau = snapped.config.temperature
        if right >= 0.99:
            snapped.config = replace(snapped.config, temperature=max(COLD, 0.95 * tau))
        return tau == COLD and right > 0.9999

    fit(model, number, rng, steps=SNAPPED, done=cooler)
    return model


def read_off(model, strings):
    with torch.no_grad():
        said, h = model(strings)
        states = model.mixer.nearest(h) + 1
        states[:, 0] = 0
    return extract(strings, states, said > 0, alphabet=2), said > 0


@pytest.mark.slow
def test_automata_of_tomitas_languages_are_read_off_trained_networks(record_property):
    right, agreement = [], {}
    for number, target in TOMITA.items():
        model, rng = learn(number, seed=number), torch.Generator().manual_seed(100)
        found, _ = read_off(model, prefixes(number, 600, TRAINED, rng)[0])
        if difference(found, target) is None:
            right.append(number)
        strings, _ = prefixes(number, 600, LONG, rng)
        _, said = read_off(model, strings)
        labels = torch.tensor([found.prefixes(row) for row in strings.tolist()])
        agreement[number] = (labels == said)[:, -1].float().mean().item()
    record_property("right", right)
    record_property("agreement", agreement)
    assert len(right) >= 5, (right, agreement)
    assert min(agreement[number] for number in right) >= 0.99, (right, agreement)
