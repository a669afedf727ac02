"""Cells with heads against dense cells, and by the laws."""

import pytest
import torch
from laws import assert_near, forms_law, reset_law, split_law
from native import accuracy_law, every_level, every_thread, needs, repeat_law
from torch import nn

from stepscan.mixers import MIXERS
from stepscan.ops.cells import cell_scan
from stepscan.ops.headed_cells import KINDS, Heads

GATES = {"elman": 1, "gru": 3, "lstm": 4}
B, T, D = 3, 40, 5
native = needs("cell_scan")
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind, heads=2, size=3, dtype=torch.float64):
    """A cell, its input, a state that it came to, and resets."""
    gates = GATES[kind] * size
    shapes = (heads, gates, D), (heads, gates, size), (heads, gates), (heads, gates)
    cell = Heads(kind, *(0.8 * size**-0.5 * torch.randn(s, dtype=dtype) for s in shapes))
    x = torch.randn(B, T, D, dtype=dtype)
    state = cell_scan(cell, x[:, :5], form="recurrent")[1]
    return cell, x, state, torch.rand(B, T) < 0.1


def dense(cell):
    """The same cell with its blocks in a matrix of zeros, gate by gate as a dense one has them."""
    gates, size = cell.recurrent_weight.shape[1:]
    count = gates // size

    def rows(t):  # [H (g K) ...] -> [(g H K) ...]
        return t.unflatten(1, (count, size)).transpose(0, 1).flatten(0, 2)

    blocks = cell.recurrent_weight.unflatten(1, (count, size))
    whole = torch.stack([torch.block_diag(*blocks[:, g]) for g in range(count)]).flatten(0, 1)
    biases = rows(cell.input_bias), rows(cell.recurrent_bias)
    return KINDS[cell.kind](rows(cell.input_weight), whole, *biases)


@every_kind
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_are_blocks_of_a_dense_cell(kind, heads):
    cell, x, state, resets = make(kind, heads)
    for given in (None, resets):
        got = cell_scan(cell, x, state=state, resets=given, form="recurrent")
        want = cell_scan(dense(cell), x, state=state, resets=given, form="recurrent")
        assert_near((got[0], *got[1]), (want[0], *want[1]), what="outputs and state")


@every_kind
def test_one_head_is_the_dense_mixer(kind):
    one = MIXERS[kind](heads=1).build(8)
    assert one.cell().recurrent_weight.ndim == 2  # nothing changed: torch's own layout
    many = MIXERS[kind](heads=4).build(8)
    assert isinstance(many.cell(), Heads)
    shared = sum(p.numel() for n, p in one.named_parameters() if "recurrent_weight" in n)
    blocks = sum(p.numel() for n, p in many.named_parameters() if "recurrent_weight" in n)
    assert blocks * 4 == shared


@every_kind
def test_laws(kind):
    cell, x, state, resets = make(kind)
    weights = [p.requires_grad_() for p in cell[1:]]
    run = lambda xs, s, r: cell_scan(cell, xs[0], state=s, resets=r)  # noqa: E731
    split_law(run, (x,), state, [0, 1, 3, 20], resets=resets, params=weights)
    reset_law(run, (x,), state, resets, params=weights)


@every_kind
@pytest.mark.parametrize("options", [{"heads": 2}, {"heads": 4, "expansion": 2.0}])
def test_mixer_laws(kind, options):
    options = options | ({} if kind == "elman" else {"depth": 2})
    mixer, x = MIXERS[kind](**options).build(8).double(), torch.randn(2, 20, 8).double()
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    resets, params = torch.rand(2, 20) < 0.15, list(mixer.parameters())
    split_law(step, (x,), mixer.init_state(2), [0, 1, 9], resets=resets, params=params)
    reset_law(step, (x,), mixer.init_state(2), resets, params=params)


def of_form(kind):
    def make_step(form):
        return lambda xs, state, resets: cell_scan(
            Heads(kind, *xs[1:]), xs[0], state=state, resets=resets, form=form
        )

    return make_step


@native
@every_kind
def test_native_form(kind):
    cell, x, state, resets = make(kind, dtype=torch.float32)
    run = of_form(kind)
    for marks in (resets, None):
        forms_law(run("cpu"), run("recurrent"), (x, *cell[1:]), state, resets=marks)


@native
@every_level
@every_thread
@every_kind
def test_native_form_on_poisoned_memory(level, threads, kind, poisoned):
    cell, x, state, resets = make(kind, heads=3, size=17, dtype=torch.float32)
    accuracy_law(of_form(kind), (x, *cell[1:]), state, resets=resets)
    repeat_law(of_form(kind), (x, *cell[1:]), state)


@pytest.mark.plain
@every_kind
def test_compiles(kind):
    mixer = MIXERS[kind](heads=2).build(8)
    whole = torch.compile(mixer, backend="eager", fullgraph=True)
    x = torch.randn(2, 12, 8)
    assert_near(whole(x)[0], mixer(x)[0], what="outputs")


@pytest.mark.plain
@every_kind
def test_errors_say_what_to_fix(kind):
    with pytest.raises(ValueError, match=f"{kind}: heads=3 must divide the hidden width E=8"):
        MIXERS[kind](heads=3).build(8)
    module = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind](8, 8)
    with pytest.raises(ValueError, match="has no heads: want heads=1"):
        MIXERS[kind](heads=2).build(8).load_torch(module)
