"""The branches of UniRec: what is even, what is thinned, what is transferred, written out."""

import math

import pytest
import torch

from stepscan.data.base import Batch
from stepscan.layers.time_encoding import COLUMNS
from stepscan.models import Inputs, ModelConfig, SequenceModel
from stepscan.models.heads import from_dict, to_dict
from stepscan.models.heads.enhanced_item import EnhancedItem
from stepscan.train.enhance import (
    Enhance,
    Tables,
    even_limit,
    frequent,
    is_even,
    mix,
    newest,
    thin,
)
from stepscan.train.objectives import loss

VOCAB = 9  # items 1 to 8, of which 1 to 4 are of the head at a share of a half
COUNTS = torch.tensor([0, 9, 8, 7, 6, 3, 2, 1, 1])


def made_tables():
    rng = torch.Generator().manual_seed(0)
    return Tables(
        counts=COUNTS,
        unevenness=torch.rand(VOCAB, generator=rng),
        neighbours=torch.randint(1, VOCAB, (VOCAB, 2), generator=rng),
        variances=torch.tensor([0.0, 1.0, 2.0, 3.0, torch.nan]),
    )


def made_batch(clock=False):
    """Row 0: an even sequence of 6 and an uneven one of 2. Row 1: an even one of 8."""
    items = torch.tensor([[1, 5, 2, 6, 3, 4, 7, 8], [5, 1, 1, 2, 8, 3, 1, 6]])
    resets = torch.zeros(2, 8, dtype=torch.bool)
    resets[0, [0, 6]] = True
    resets[1, 0] = True
    uneven = torch.full((2, 8), 9.0)
    uneven[0, 5] = uneven[1, 7] = 0.5
    reals = None
    if clock:
        reals = torch.rand(2, 8, COLUMNS, generator=torch.Generator().manual_seed(1))
        reals[..., 0] = 1
        reals[..., -1] = torch.arange(1, 17).view(2, 8)
        reals[..., -1][resets] = 0
    token = items.roll(-1, 1).masked_fill(resets.roll(-1, 1), -1)
    return Batch(items[..., None], reals, resets, {"token": token, "uneven": uneven})


def made_model(clock=False, **options):
    torch.manual_seed(0)
    head = EnhancedItem(vocab=VOCAB, frequent=0.5, neighbours=2, ramp=10, **options)
    config = ModelConfig(
        head=head,
        layers="min_gru",
        width=8,
        tokens=(VOCAB,),
        reals=COLUMNS if clock else 0,
        clock=clock,
    )
    return SequenceModel(config).double().train()


def test_items_of_the_head_are_those_taken_most():
    assert frequent(COUNTS, 0.5).nonzero()[:, 0].tolist() == [1, 2, 3, 4]
    assert not frequent(COUNTS, 0.0).any()
    assert frequent(COUNTS, 1.0).nonzero()[:, 0].tolist() == list(range(1, VOCAB))


def test_even_users_are_those_of_the_least_variance():
    variances = made_tables().variances
    assert even_limit(variances, 0.5) == 1.0
    assert even_limit(variances, 1.0) == 3.0
    assert even_limit(variances, 0.0) == -math.inf
    assert even_limit(torch.full((3,), torch.nan), 0.5) == -math.inf


def test_a_sequence_is_even_by_its_intervals_up_to_its_end():
    batch = made_batch()
    want = torch.tensor([[True] * 6 + [False] * 2, [True] * 8])
    assert torch.equal(is_even(batch, 1.0), want)
    batch.targets["uneven"][1, 7] = torch.nan  # fewer than two intervals
    assert not is_even(batch, 1.0)[1].any()
    assert newest(batch.resets, 2)[0].tolist() == [False] * 4 + [True] * 4


def test_a_thinned_sequence_keeps_what_it_should_by_hand():
    batch = made_batch(clock=True)
    head = frequent(COUNTS, 0.5)
    kept = is_even(batch, 1.0) & (~head[batch.tokens[..., 0]] | newest(batch.resets, 2))
    some = thin(batch, kept)
    assert some.at.tolist() == [[1, 3, 4, 5], [0, 4, 6, 7]]
    assert some.inputs.tokens[..., 0].tolist() == [[5, 6, 3, 4], [5, 8, 1, 6]]
    assert some.resets.tolist() == [[True, False, False, False]] * 2
    since = batch.reals[..., -1]
    want = [[0, since[0, 2:4].sum(), since[0, 4], since[0, 5]]]
    want += [[0, since[1, 1:5].sum(), since[1, 5:7].sum(), since[1, 7]]]
    assert some.inputs.reals[..., -1].tolist() == torch.tensor(want).tolist()
    calendar = some.inputs.reals[..., :-1]
    assert torch.equal(calendar[0, 2], batch.reals[0, 4, :-1]), "the calendar goes along"
    short = thin(
        batch, kept & (torch.arange(2)[:, None] == 1) | (kept & (batch.tokens[..., 0] == 5))
    )
    assert short.at[0].tolist() == [1, -1, -1, -1]
    assert short.inputs.tokens[0, :, 0].tolist() == [5, 0, 0, 0]
    assert (short.inputs.reals[0, 1:] == 0).all()
    assert short.resets[0].all(), "what pads a row reads nothing"


@pytest.mark.parametrize("clock", [False, True])
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_the_sequence_branch_is_the_distance_of_what_is_said(clock, progress):
    """Sequence by sequence, step by step, each thinned sequence read by itself."""
    model, batch = made_model(clock), made_batch(clock)
    branch = Enhance(made_tables(), model.config.head)
    said, _ = model(Inputs(batch.tokens, batch.reals), None, batch.resets)
    found = branch.sequences(model, batch, said.x, progress)
    costs = []
    for row, steps in ((0, [1, 3, 4, 5]), (1, [0, 4, 6, 7])):
        tokens = batch.tokens[row, steps][None]
        reals = None
        if clock:
            reals = batch.reals[row, steps][None].clone()
            run = batch.reals[row, :, -1].cumsum(0)[steps]
            reals[0, :, -1] = run.diff(prepend=run[:1])
        alone, _ = model(Inputs(tokens, reals))
        weight = abs(math.sin(math.pi / 2 * (progress + (4 - 3) / 8)))
        for place, step in enumerate(steps):
            error = model.head.restore(alone.x[0, place]) - said.x[row, step]
            costs.append(weight * error.square().mean())
    assert int(found.count) == 8
    torch.testing.assert_close(found.total, torch.stack(costs).sum())


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_the_item_branch_is_the_distance_from_what_neighbours_say(progress):
    model, batch, tables = made_model(), made_batch(), made_tables()
    near, far = Enhance(tables, model.config.head).items(model, batch, progress)
    table = model.embed.tables[0].weight
    costs = {True: [], False: []}
    for item in range(1, 9):
        others = tables.neighbours[item]
        weights = torch.stack([table[item] @ table[j] for j in others]).softmax(0)
        mean = sum(w * table[j] for w, j in zip(weights, others, strict=True))
        guess = model.head.gather(torch.cat([table[item], mean]))
        often = item <= 4
        weight = math.sin(math.pi / 2 * progress)
        if often:
            weight = math.sin(math.pi / 2 * (progress + 1 - tables.unevenness[item].item()))
        costs[often].append(weight * (guess - table[item]).square().mean())
    for found, often in ((near, True), (far, False)):
        assert int(found.count) == 4
        torch.testing.assert_close(found.total, torch.stack(costs[often]).sum())


def test_what_neighbours_say_is_learned_from_the_head_alone():
    model, batch = made_model(), made_batch()
    branch = Enhance(made_tables(), model.config.head)
    near, far = branch.items(model, batch, 0.7)
    gather, table = model.head.gather.weight, model.embed.tables[0].weight
    assert torch.autograd.grad(near.total, gather, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(far.total, gather, allow_unused=True, retain_graph=True)[0] is None
    (moved,) = torch.autograd.grad(far.total, table)
    assert (moved[5:9].abs().sum(1) > 0).all(), "items of the tail are moved"
    assert (moved[0] == 0).all()


def test_mixing_weighs_neighbours_by_their_products():
    table = torch.tensor([[0.0, 0], [1, 0], [2, 0], [0, 3]])
    found = mix(table, torch.tensor([1]), torch.tensor([[2, 3]]))
    a, b = math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)
    assert found[0].tolist() == pytest.approx([1, 0, 2 * a, 3 * b])


def test_the_loss_is_the_sum_of_its_parts_and_steps_are_counted():
    model, batch, tables = made_model(), made_batch(), made_tables()
    branch = Enhance(tables, model.config.head)
    found, _ = branch(model, batch, None)
    assert int(model.head.steps) == 1
    plain, _ = model(Inputs(batch.tokens), None, batch.resets)
    own = loss(model.config.head, plain, batch.targets)
    near, far = branch.items(model, batch, 0.0)
    parts = {"sequence": branch.sequences(model, batch, plain.x, 0.0), "item": near, "tail": far}
    want = own.mean + sum(
        w * parts[n].total / parts[n].count
        for n, w in (("sequence", 0.2), ("item", 0.3), ("tail", 0.1))
    )
    torch.testing.assert_close(found.mean, want)
    assert set(found.sums) == {"token", "sequence", "item", "tail"}
    model.eval()
    judged, _ = branch(model, batch, None)
    assert set(judged.sums) == {"token"}
    assert int(model.head.steps) == 1
    again = SequenceModel(model.config).double()
    again.load_state_dict(model.state_dict())
    assert int(again.head.steps) == 1, "a run that goes on knows how far it is"


def test_without_weights_or_even_users_there_is_only_the_next_item():
    for options in ({"sequence": 0, "item": 0, "tail": 0}, {"even": 0.0, "item": 0, "tail": 0}):
        model, batch = made_model(**options), made_batch()
        found, _ = Enhance(made_tables(), model.config.head)(model, batch, None)
        plain, _ = model(Inputs(batch.tokens), None, batch.resets)
        torch.testing.assert_close(found.mean, loss(model.config.head, plain, batch.targets).mean)


def test_the_head_comes_back_from_plain_data_and_refuses_what_makes_no_sense():
    head = EnhancedItem(vocab=9, ramp=3)
    assert from_dict(to_dict(head)) == head
    for wrong, message in (
        ({"sequence": -1}, "sequence >= 0"),
        ({"even": 1.5}, "even from 0 to 1"),
        ({"ramp": 0}, "ramp >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            EnhancedItem(vocab=9, **wrong)
