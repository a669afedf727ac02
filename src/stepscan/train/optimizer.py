"""AdamW with the exemptions that the papers ask for.

Source: Loshchilov and Hutter 2017, arXiv:1711.05101; betas of the language model literature.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

SLOW = 1e-3  # the most that a `slow` parameter is trained with (S4D, arXiv:2206.11893)


def adamw(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW over three kinds of parameters; each group remembers its own `peak` learning rate.

    - matrices: decayed;
    - vectors, and what a module names in `no_decay`: not decayed;
    - what a module names in `slow`: not decayed, learning rate at most 1e-3.
    """
    slow, exempt = set(_named_by(model, "slow")), set(_named_by(model, "no_decay"))
    kinds: dict[str, list[Tensor]] = {"matrices": [], "vectors": [], "slow": []}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or parameter in exempt
        kinds["slow" if parameter in slow else "vectors" if plain else "matrices"].append(parameter)
    groups = [
        {
            "params": parameters,
            "peak": min(learning_rate, SLOW) if kind == "slow" else learning_rate,
            "weight_decay": weight_decay if kind == "matrices" else 0.0,
        }
        for kind, parameters in kinds.items()
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group at this part of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak"]


def _named_by(model: nn.Module, attribute: str) -> Iterator[Tensor]:
    """The parameters that any module of the model lists under `attribute`, by its own names.

    A name that this instance lacks is skipped: a class lists those of all its options.
    """
    for module in model.modules():
        names = getattr(module, attribute, ())
        if names:
            yield from (p for name, p in module.named_parameters() if name in names)
