import math

import pytest
import torch
from torch.nn import functional as F

from stepscan.models.heads import (
    Classify,
    EventOutput,
    Forecast,
    HeadConfig,
    NextEvent,
    NextToken,
    Regress,
)
from stepscan.train.objectives import SHORTEST, loss

B, T, V, M, H = 2, 5, 7, 3, 4
LEVELS = (0.1, 0.5, 0.9)


def some(head):
    """Outputs that want a gradient, and targets of which some are not asked."""
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64).requires_grad_()  # noqa: E731
    token = torch.randint(V, (B, T)).masked_fill(torch.rand(B, T) < 0.4, -1)
    gap = torch.rand(B, T).double().masked_fill(torch.rand(B, T) < 0.4, math.nan)
    future = torch.randn(B, T, H).double().masked_fill(torch.rand(B, T, H) < 0.4, math.nan)
    match head.name:
        case "next_token":
            return draw(B, T, V), {"token": token}
        case "classify":
            return draw(B, T, V), {"label": token}
        case "next_event":
            until = torch.rand(B, T).double().masked_fill(torch.rand(B, T) < 0.4, math.nan)
            outputs = EventOutput(draw(B, T, V), draw(B, T, 3, M), draw(B, T, 3, M))
            return outputs, {"token": token, "gap": gap, "remaining": until}
        case "forecast":
            return draw(B, T, H, len(LEVELS)), {"future": future}
        case "regress":
            return draw(B, T, H), {"value": future}


every_head = pytest.mark.parametrize(
    "head",
    [
        NextToken(vocab=V),
        Classify(classes=V),
        NextEvent(vocab=V, mixtures=M, remaining=True),
        Forecast(horizon=H, quantiles=LEVELS),
        Regress(outputs=H),
    ],
    ids=lambda head: head.name,
)


def leaves(outputs):
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def asked(target):
    return ~target.isnan() if target.is_floating_point() else target >= 0


@pytest.mark.parametrize("head", [NextToken(vocab=V), Classify(classes=V)], ids=str)
def test_cross_entropy_is_torchs(head):
    logits, targets = some(head)
    (target,) = targets.values()
    want = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1)
    torch.testing.assert_close(loss(head, logits, targets).mean, want)


@pytest.mark.parametrize("name", ["gap", "remaining"])
def test_a_time_costs_the_likelihood_of_a_mixture(name):
    head = NextEvent(vocab=V, mixtures=M, remaining=True)
    outputs, targets = some(head)
    targets[name][0, 0] = 0.0  # two events of one instant
    weights, means, scales = getattr(outputs, name).unbind(-2)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=weights),
        torch.distributions.Normal(means, scales.exp()),
    )
    given = torch.stack([weights.log_softmax(-1), means, scales], -2)  # as the head gives them
    outputs = outputs._replace(**{name: given})
    want = -mixture.log_prob(targets[name].nan_to_num(1.0).clamp_min(SHORTEST).log())
    total, count = loss(head, outputs, targets).sums[name]
    torch.testing.assert_close(total, want[asked(targets[name])].sum())
    assert count == asked(targets[name]).sum()


def test_the_rest_of_a_case_is_learned_only_where_it_is_said():
    outputs, targets = some(NextEvent(vocab=V, mixtures=M))
    without = loss(NextEvent(vocab=V, mixtures=M), outputs, targets)
    with_it = loss(NextEvent(vocab=V, mixtures=M, remaining=True), outputs, targets)
    assert set(with_it.sums) - set(without.sums) == {"remaining"}
    total, count = with_it.sums["remaining"]
    torch.testing.assert_close(with_it.mean - without.mean, total / count)


def test_pinball_is_its_definition():
    head = Forecast(horizon=H, quantiles=LEVELS)
    outputs, targets = some(head)
    want, count = 0.0, 0
    for b, t, h in asked(targets["future"]).nonzero().tolist():
        y = targets["future"][b, t, h].item()
        for q, said in zip(LEVELS, outputs[b, t, h].tolist(), strict=True):
            want += (q * (y - said) if y > said else (1 - q) * (said - y)) / len(LEVELS)
        count += 1
    result = loss(head, outputs, targets)
    assert result.sums["future"].total.item() == pytest.approx(want)
    assert result.mean.item() == pytest.approx(want / count)


@every_head
def test_what_is_not_asked_takes_no_part(head):
    """Neither in value nor in gradient, even where the outputs are not finite."""
    outputs, targets = some(head)
    want = loss(head, outputs, targets)
    gradients = torch.autograd.grad(want.mean, leaves(outputs))
    poisoned = []
    for leaf, target in zip(leaves(outputs), targets.values(), strict=True):
        mask = asked(target)
        mask = mask.view(*mask.shape, *[1] * (leaf.ndim - mask.ndim))
        poisoned.append(leaf.detach().masked_fill(~mask, math.nan).requires_grad_())
    given = EventOutput(*poisoned) if head.name == "next_event" else poisoned[0]
    got = loss(head, given, targets)
    assert got.mean.equal(want.mean)
    for a, b in zip(torch.autograd.grad(got.mean, poisoned), gradients, strict=True):
        assert a.equal(b)


@every_head
def test_a_batch_that_asks_nothing_weighs_nothing(head):
    outputs, targets = some(head)
    for target in targets.values():
        target.fill_(math.nan if target.is_floating_point() else -1)
    got = loss(head, outputs, targets)
    assert got.mean == 0
    assert all(count == 0 and total == 0 for total, count in got.sums.values())
    assert all(not g.any() for g in torch.autograd.grad(got.mean, leaves(outputs)))


@every_head
def test_gradients(head):
    outputs, targets = some(head)
    rebuild = EventOutput if head.name == "next_event" else lambda x: x
    assert torch.autograd.gradcheck(
        lambda *parts: loss(head, rebuild(*parts), targets).mean, leaves(outputs)
    )


@every_head
def test_halves_are_summed_in_float32(head):
    outputs, targets = some(head)
    halves = [leaf.detach().bfloat16() for leaf in leaves(outputs)]
    given = EventOutput(*halves) if head.name == "next_event" else halves[0]
    assert loss(head, given, targets).mean.dtype in {torch.float32, torch.float64}


def test_errors_say_what_is_missing():
    head = NextEvent(vocab=V, mixtures=M)
    outputs, targets = some(head)
    with pytest.raises(ValueError, match=r"next_event wants a target 'gap'; the batch has token"):
        loss(head, outputs, {"token": targets["token"]})

    class Other(HeadConfig):
        def build(self, width, table):
            raise AssertionError

    with pytest.raises(ValueError, match=r"no objective for the head .*Other"):
        loss(Other(), outputs, targets)
