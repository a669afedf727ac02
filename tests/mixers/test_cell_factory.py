"""Parts put together give the published cells, and every combination keeps the laws."""

import pytest
import torch
from laws import assert_near, reset_law, split_law
from torch import nn

from stepscan.mixers import MIXERS
from stepscan.mixers.cell_factory import CellFactoryConfig as Factory
from stepscan.models import ModelConfig, NextToken, SequenceModel
from stepscan.ops.composed_cells import GATES

WIDTH = 8
ATTENTION = MIXERS["attention"](heads=2)
SETTINGS = {
    "gru": Factory(),
    "lstm": Factory(gate="separate", reset=False, output_gate=True),
    "elman": Factory(gate="none", reset=False),
    "highway": Factory(reset=False, depth=3),
    "transformer": Factory(gate="none", reset=False, recur=False, attend=ATTENTION),
}
TORCH = {"gru": nn.GRU, "lstm": nn.LSTM, "elman": nn.RNN}


def x_of(T=30):
    return torch.randn(2, T, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("name", TORCH)
def test_settings_are_the_cells_of_torch(name):
    """The order of the parts is torch's, so the weights fit as they are."""
    module = TORCH[name](WIDTH, WIDTH, batch_first=True).double()
    mixer, x = SETTINGS[name].build(WIDTH).double(), x_of()
    with torch.no_grad():
        for mine, theirs in zip(mixer.parameters(), module.parameters(), strict=True):
            mine.copy_(theirs.view_as(mine))
    want, last = module(x)
    y, state = mixer(x)
    last = last if name == "lstm" else (last,)
    assert_near((y, *state.cell), (want, *(t[0] for t in last)), what=name)


def test_depth_is_that_of_a_recurrent_highway_network():
    """Zilly et al. 2017: s = h t + s (1 - t); t is 1 - z: weights negated."""
    mixer, x = SETTINGS["highway"].build(WIDTH).double(), x_of()
    part = mixer.part
    W_t, W_h = part.input_weight.chunk(2)
    b_t, b_h = part.input_bias.chunk(2)
    s, ys = torch.zeros(2, WIDTH, dtype=torch.float64), []
    for x_t in x.unbind(1):
        for turn in range(3):
            R_t, R_h = part.recurrent_weight[turn].chunk(2)
            c_t, c_h = part.recurrent_bias[turn].chunk(2)
            first = turn == 0
            h = torch.tanh(first * (x_t @ W_h.mT + b_h) + s @ R_h.mT + c_h)
            t = torch.sigmoid(first * (x_t @ -W_t.mT - b_t) + s @ -R_t.mT - c_t)
            s = h * t + s * (1 - t)
        ys.append(s)
    assert_near(mixer(x)[0], torch.stack(ys, 1), what="highway")


def test_attention_alone_is_a_transformer():
    configs = [
        ModelConfig(head=NextToken(vocab=11), layers=(mixer,) * 2, width=WIDTH, tokens=(11,))
        for mixer in (SETTINGS["transformer"], ATTENTION)
    ]
    mine, theirs = (SequenceModel(config).double() for config in configs)
    names = zip(mine.state_dict(), theirs.state_dict(), strict=True)
    assert all(a.replace(".attend.", ".") == b for a, b in names)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        a.data.copy_(b.data)
    tokens = torch.randint(11, (2, 20))
    assert_near(mine(tokens)[0], theirs(tokens)[0], what="outputs")


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    "options",
    [
        {"reset": False},
        {"reset": True, "output_gate": True, "depth": 2},
        {"reset": False, "attend": MIXERS["attention"](heads=2, window=4)},
        {"reset": False, "recur": False, "attend": MIXERS["gla"](heads=2)},
    ],
    ids=["plain", "all", "attend", "without recurrence"],
)
def test_laws_of_every_combination(gate, options):
    mixer, x = Factory(gate=gate, **options).build(WIDTH).double(), x_of(20)
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    resets, params = torch.rand(2, 20) < 0.15, list(mixer.parameters())
    state = torch.utils._pytree.tree_map(torch.Tensor.detach, mixer(x[:, :9])[1])
    split_law(step, (x,), state, [0, 1, 9], resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)
    (mixer(x)[0] + 1).square().sum().backward()
    assert all(p.grad.any() for p in params)


def test_what_the_gates_keep():
    """With no new, each gate keeps of the old what it says."""
    x = torch.zeros(1, 1, WIDTH, dtype=torch.float64)
    old = torch.rand(1, WIDTH, dtype=torch.float64)
    for gate, kept in (("none", 0.0), ("additive", 1.0), ("rate", 0.5), ("coupled", 0.5)):
        mixer = Factory(gate=gate, reset=False).build(WIDTH).double()
        for p in mixer.parameters():
            p.data.zero_()
        state = mixer.init_state(1)
        state = state._replace(cell=state.cell._replace(hidden=old))
        assert_near(mixer(x, state)[0][:, 0], kept * old, what=gate)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    wrong = {
        "Did you mean 'coupled'": {"gate": "couple"},
        "depth >= 1": {"depth": 0},
        "nothing to reset": {"recur": False},
        "leaves no memory": {"gate": "none", "recur": False, "reset": False},
        "output_gate wants": {
            "gate": "none", "recur": False, "reset": False, "output_gate": True,
            "attend": ATTENTION,
        },
    }  # fmt: skip
    for message, options in wrong.items():
        with pytest.raises(ValueError, match=message):
            Factory(**options).build(WIDTH)
