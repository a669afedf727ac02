"""Did a model learn the recursion, or a shortcut that is right where training looked?

Tasks of structural recursion (`tasks.rewriting`) say how deep each example recurses. Random ones
are rarely deep: a model can be right on nearly all of them and wrong on a whole class of others.
`by_stratum` tells the depths apart, `edge` compares those that training hardly sees with the rest,
and `influence` says which steps of the input an answer hangs on. Source: Zhang et al. 2024,
arXiv:2401.12947, who tell edge cases apart and read attention; reading gradients is our choice,
since it serves mixers without attention too.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.models import SequenceModel
from stepscan.tasks import Batch
from stepscan.tasks.rewriting import Rewriting


class Stratum(NamedTuple):
    """The examples of one depth of recursion."""

    examples: int
    tokens: float
    """Share of answers that are right, where asked."""
    whole: float
    """Share of examples of which every answer is right."""


class Edge(NamedTuple):
    """Whole answers that are right, where training looked and where it did not."""

    usual: float
    rare: float


def by_stratum(task: Rewriting, answer: Int[Tensor, "B T"], batch: Batch) -> dict[int, Stratum]:
    """Accuracies by depth of recursion, the shallowest first."""
    depth = task.strata(batch.input)
    right = (answer == batch.target) | ~batch.asked
    wrong, asked = (~right).sum(1), batch.asked.sum(1)
    found = {}
    for each in depth.unique().tolist():
        rows = depth == each
        tokens = 1 - (wrong[rows].sum() / asked[rows].sum()).item()
        found[each] = Stratum(int(rows.sum()), tokens, (wrong[rows] == 0).double().mean().item())
    return found


def edge(strata: dict[int, Stratum], often: dict[int, float], *, rare: float = 1e-3) -> Edge:
    """Usual and edge cases, every example of a class with the same weight.

    Args:
        strata: What `by_stratum` found, best on examples that hold every depth as often.
        often: How often training draws each depth; depths without an entry are never drawn.
        rare: Depths drawn less often are edge cases.
    """
    groups: tuple[list[Stratum], list[Stratum]] = ([], [])
    for depth, stratum in strata.items():
        groups[often.get(depth, 0.0) < rare].append(stratum)
    if not all(groups):
        raise ValueError(
            f"edge: want depths drawn more and less often than {rare}, got {sorted(strata)}, "
            f"drawn {often}"
        )
    usual, edges = (
        sum(s.whole * s.examples for s in group) / sum(s.examples for s in group)
        for group in groups
    )
    return Edge(usual, edges)


def influence(
    model: SequenceModel, input: Int[Tensor, "B T"], at: Int[Tensor, "B"]
) -> Float[Tensor, "B T"]:
    """How much the answer at one step of each row hangs on each step of the input.

    It is the length of the gradient, by the embedded input, of the margin by which the best answer
    leads over the second.
    """
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[object, ...], out: Tensor) -> Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    hook = model.embed.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            said = model(input)[0][torch.arange(len(input)), at]
            first, second = said.topk(2, dim=-1).values.unbind(-1)
            (slope,) = torch.autograd.grad((first - second).sum(), seen)
    finally:
        hook.remove()
    return slope.norm(dim=-1)
