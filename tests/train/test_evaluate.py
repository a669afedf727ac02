import pytest
import torch

from stepscan.data.base import Packed
from stepscan.mixers import MIXERS
from stepscan.models import NextToken
from stepscan.train.carry import newest_slots
from stepscan.train.evaluate import evaluate, walk_outputs
from stepscan.train.objectives import loss


@pytest.mark.parametrize("rows", [1, 2, 10])
@pytest.mark.parametrize("length", [1, 7, 1_000])
def test_the_mean_is_that_of_one_pass_over_each_sequence(packed, build, inputs, rows, length):
    model = build().eval()
    outputs, _ = model(inputs(packed), None, packed.starts[None])
    targets = {"token": packed.targets_at(torch.arange(len(packed)))["token"][None]}
    want = loss(model.config.head, outputs, targets).mean.item()
    assert evaluate(model, packed, rows=rows, length=length) == pytest.approx({"token": want})


def test_the_walk_gives_the_batches_with_their_outputs(packed, build):
    model = build()
    steps = 0
    for batch, outputs in walk_outputs(model, packed, rows=2, length=16):
        assert outputs.shape[:2] == batch.resets.shape
        assert not outputs.requires_grad
        assert torch.is_grad_enabled()
        assert not model.training
        steps += int((batch.targets["token"] >= 0).sum())
    assert steps == int((packed.targets_at(torch.arange(len(packed)))["token"] >= 0).sum())
    assert model.training


def test_a_walk_that_is_left_puts_the_model_back(packed, build):
    model = build()
    walk = walk_outputs(model, packed, rows=2, length=16)
    next(walk)
    walk.close()
    assert model.training


def test_nothing_to_judge_is_an_error(packed, build):
    silent = Packed(
        packed.starts,
        tokens=packed.tokens,
        targets={"token": torch.full((len(packed),), -1)},
    )
    with pytest.raises(ValueError, match="nothing is asked"):
        evaluate(build(), silent, rows=2, length=16)


def test_the_newest_slots_of_attention_are_a_window():
    width, window = 16, 5
    whole = MIXERS["attention"]().build(width)
    near = MIXERS["attention"](window=window).build(width)
    near.load_state_dict(whole.state_dict())
    x = torch.randn(2, 20, width)
    resets = torch.rand(2, 20) < 0.1
    _, state = whole(x, None, resets)
    _, narrow = near(x, None, resets)
    state = newest_slots(({"deep": state},), window - 1)[0]["deep"]
    for a, b in zip(state, narrow, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(whole(x[:, :1], state)[0], near(x[:, :1], narrow)[0])


def test_slots_limit_what_attention_sees(packed, build):
    model = build("attention")
    far = evaluate(model, packed, rows=1, length=8)
    assert evaluate(model, packed, rows=1, length=8, slots=1_000) == far
    assert evaluate(model, packed, rows=1, length=8, slots=1) != far


@pytest.mark.parametrize("slots", [0, 3, 999])
def test_only_what_grows_is_cut(build, inputs, packed, slots):
    _, state = build("attention min_gru")(inputs(packed))
    attention, recurrent = newest_slots(state, slots)
    assert attention.keys.shape[1] == min(slots, len(packed))
    assert attention.length.equal(state[0].length)
    assert recurrent.hidden is state[1].hidden


def test_the_head_decides_what_is_judged(packed, build):
    assert set(evaluate(build(head=NextToken(vocab=11)), packed, rows=2, length=8)) == {"token"}
