"""Depth by repetition, halting, and channel mixers of whole models."""

import dataclasses
import json

import pytest
import torch
from laws import causal_law, live_law, reset_law, rows_law, split_law, state_law
from torch import nn

from stepscan import state as states
from stepscan.layers.costs import collect, total
from stepscan.models import Inputs, ModelConfig, NextToken, SequenceModel
from stepscan.models.looped import with_loops

T, VOCAB = 14, 7
BASE = ModelConfig(width=16, tokens=(VOCAB,), head=NextToken(vocab=VOCAB), layers="gla attention")
ACT = {"loops": 4, "halt": "act[threshold=0.9]"}
CASES = {
    "loops": {"loops": 3, "loop_embedding": True},
    "gate": {"loops": 3, "identity_bias": 1.0, "layer_scale": 0.5},
    "act": ACT,
    "moe": {"mlp": "moe[experts=3, shared=0.5] swiglu", "loops": 2},
    "jamba": {"layers": "mamba attention mamba*2", "mlp": "swiglu moe[normalize=False]"},
    "structured": {"mlp": "block_dense low_rank[rank=0.5]", "mlp_ratio": 2.0},
}
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


def built(options, dtype=torch.float64):
    return SequenceModel(dataclasses.replace(BASE, **options)).to(dtype)


def setup(options, dtype=torch.float64):
    model = built(options, dtype)
    tokens = torch.randint(VOCAB, (2, T, 1))
    step = lambda xs, state, resets: model(Inputs(xs[0], None), state, resets)  # noqa: E731
    state = states.detach(step((tokens,), None, None)[1])
    return step, (tokens,), state, torch.rand(2, T) < 0.15, list(model.parameters())


@every_case
def test_laws(options, tmp_path):
    step, xs, state, resets, params = setup(options)
    for cuts in ([0, 5], [3, 3, 9, T], list(range(1, T))):
        split_law(step, xs, state, cuts, resets=resets, params=params)
    reset_law(step, xs, state, resets, params=params)
    rows_law(step, xs, state, resets=resets, params=params)
    causal_law(step, xs, 9)
    state_law(step, xs, state, tmp_path / "state")


@every_case
def test_live_law(options):
    live_law(built(options, torch.float32), torch.arange(10 * T).remainder(VOCAB).view(10, T))


@pytest.mark.plain
@pytest.mark.parametrize("options", [ACT | {"loops": 2}, CASES["moe"] | {"loops": 1}], ids=str)
def test_compiles_whole(options):
    model = built(options | {"layers": "causal_conv*2"}, torch.float32)
    tokens = torch.randint(VOCAB, (2, T))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens)[0], model(tokens)[0])


@every_case
def test_the_state_before_the_first_token_and_the_file(options):
    model, tokens = built(options), torch.randint(VOCAB, (2, T))
    assert torch.equal(model(tokens)[0], model(tokens, model.init_state(2))[0])
    config = model.config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_files_from_before_these_options_load():
    old = BASE.to_dict()
    for key in ("mlp", "layer_scale", "loops", "halt", "identity_bias", "loop_embedding"):
        del old[key]
    assert ModelConfig.from_dict(old) == BASE


def test_loops_are_unrolled_shared_blocks():
    """Three loops are a model of three times the blocks whose weights are the same."""
    looped = built({"loops": 3})
    unrolled = built({"layers": BASE.mixers * 3})
    for n, block in enumerate(unrolled.blocks):
        block.load_state_dict(looped.blocks[n % 2].state_dict())
    for name in ("embed", "norm", "head"):
        getattr(unrolled, name).load_state_dict(getattr(looped, name).state_dict())
    tokens = torch.randint(VOCAB, (2, T))
    torch.testing.assert_close(looped(tokens)[0], unrolled(tokens)[0], atol=1e-12, rtol=0)
    again = with_loops(built({"loops": 1}), 3)
    assert again.config == looped.config


def test_thinking_longer_takes_no_parameters():
    model = built({"loops": 2})
    longer, tokens = with_loops(model, 5), torch.randint(VOCAB, (2, T))
    assert {id(p) for p in longer.parameters()} == {id(p) for p in model.parameters()}
    assert len(longer(tokens)[1]) == 5 * len(model.blocks)
    assert not torch.equal(longer(tokens)[0], model(tokens)[0])


class Halted(nn.Module):
    """A stack that adds 1 to everything, so that x counts loops."""

    def __call__(self, x, state, resets):
        return x + 1, state


@pytest.mark.parametrize("logit", [-1.0, 0.5, 3.0])
def test_act_weighs_by_hand(logit):
    """One channel whose x counts loops: the output and N + R follow from the probabilities."""
    model = built({"loops": 6, "halt": "act[threshold=0.99]"})
    nn.init.zeros_(model.depth.halt.weight)
    nn.init.constant_(model.depth.halt.bias, logit)
    x = torch.zeros(1, 1, 16, dtype=torch.float64)
    with collect() as costs:
        y, _ = model.depth.run(Halted(), x, (None,) * 6, None)
    p = torch.tensor(logit, dtype=torch.float64).sigmoid().item()
    spent, n, want = 0.0, 0, 0.0
    while spent + p < 0.99 and n < 5:
        spent, n, want = spent + p, n + 1, want + p * (n + 1)
    want += (1 - spent) * (n + 1)
    torch.testing.assert_close(y, torch.full_like(y, want))
    (cost,) = costs
    torch.testing.assert_close(cost.value.item(), n + 1 + 1 - spent)


def test_act_weights_sum_to_one_and_pondering_is_differentiable():
    """A stack that says 1 whatever it reads: the output is the sum of the weights."""
    model = built(ACT)
    nn.init.normal_(model.depth.halt.weight, std=3.0)
    x = torch.randn(3, 20, 16).double()
    ones = lambda x, state, resets: (torch.ones_like(x), state)  # noqa: E731
    y, _ = model.depth.run(ones, x, (None,) * 4, None)
    torch.testing.assert_close(y, torch.ones_like(y))
    with collect() as costs:
        model.depth.run(lambda x, s, r: (x.roll(1, -1), s), x, (None,) * 4, None)
    (cost,) = costs
    steps = cost.value.floor()
    assert steps.unique().numel() > 1, "every token stops at the same loop"
    (gradient,) = torch.autograd.grad(total(costs), [model.depth.halt.weight])
    assert gradient.abs().max() > 0


def test_a_token_that_stopped_stays_as_it_is():
    """Told to stop at once, tokens keep the x of their first loop: as one loop, by weight 1."""
    model = built({"loops": 3, "halt": "act"})
    nn.init.constant_(model.depth.halt.bias, 50.0)
    tokens = torch.randint(VOCAB, (2, T))
    once = built({})
    once.load_state_dict({k: v for k, v in model.state_dict().items() if "depth" not in k})
    torch.testing.assert_close(model(tokens)[0], once(tokens)[0], atol=1e-12, rtol=0)


def test_a_strong_bias_towards_nothing_leaves_gradients_a_way():
    """After 30 loops the output still hears of the input as loudly as after one."""
    x = torch.randn(2, T, 16).double().requires_grad_()
    norms = {}
    for bias in (None, 4.0):
        torch.manual_seed(1)
        model = built({"loops": 30, "identity_bias": bias})
        state = (None,) * 60
        y, _ = model.depth.run(model._stack, x, state, None)
        probe = torch.randn_like(y)
        (gradient,) = torch.autograd.grad((y * probe).sum(), [x])
        norms[bias] = (gradient.norm() / probe.norm()).item()
    assert abs(norms[4.0] - 1) < 0.5 < abs(norms[None] - 1)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlp": "swigelu"}, "Did you mean 'swiglu'"),
        ({"mlp": "moe[expert=3]"}, "Did you mean 'experts'"),
        ({"mlp": "moe[experts=2, top=3]"}, "1 <= top <= experts"),
        ({"mlp": "gelu*3"}, "a whole number of times"),
        ({"mlp": "block_dense[blocks=3]"}, "blocks=3 must divide"),
        ({"mlp": "low_rank[rank=2]"}, "0 < rank <= 1"),
        ({"loops": 0}, "want loops from 1"),
        ({"halt": "act"}, "wants loops at least 2"),
        ({"halt": "act[costs=1]", "loops": 2}, "Did you mean 'cost'"),
        ({"halt": "never"}, "unknown halt"),
        ({"halt": "act fixed", "loops": 2}, "want one halt"),
        ({"halt": "act[threshold=0]", "loops": 2}, "0 < threshold"),
    ],
)
def test_impossible_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        built(options)
