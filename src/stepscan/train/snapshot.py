"""A training run as named tensors, and back: weights, optimizer, carried state."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stepscan.train.checkpoint import CheckpointError

MODEL, OPTIMIZER, STATE = "model/", "optimizer/", "state/"


def take(model: nn.Module, optimizer: torch.optim.Optimizer, state: Any) -> dict[str, Tensor]:
    """All tensors of the run, by name. A tied weight is there once, under its first name."""
    names = _names(model)
    tensors = {MODEL + name: t for name, t in _weights(model).items()}
    for parameter, slots in optimizer.state.items():
        for slot, tensor in slots.items():
            tensors[f"{OPTIMIZER}{slot}/{names[parameter]}"] = tensor
    return tensors | {STATE + name: leaf for name, leaf in _leaves(state).items()}


def restore(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, like: Any
) -> Any:
    """Put the tensors of `take` back; returns the carried state, or None if there was none.

    Args:
        tensors: What `take` returned.
        model: Of the same config; overwritten.
        optimizer: Over the same parameters; overwritten.
        like: Any state of the model: what its parts are called.
    """
    weights = _weights(model)
    saved = _under(MODEL, tensors)
    if {k: t.shape for k, t in saved.items()} != {k: t.shape for k, t in weights.items()}:
        wrong = sorted(k for k in saved.keys() | weights if _shape(saved, k) != _shape(weights, k))
        raise CheckpointError(
            f"the checkpoint is of another model: {wrong[0]} is {_shape(saved, wrong[0])} there "
            f"and {_shape(weights, wrong[0])} here"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(saved[name])
    parameters = {name: p for p, name in _names(model).items()}
    optimizer.state.clear()
    for key, tensor in _under(OPTIMIZER, tensors).items():
        slot, name = key.split("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][slot] = tensor.to(parameter.device, copy=True)
    found = _under(STATE, tensors)
    if not found:
        return None
    if found.keys() != _leaves(like).keys():
        raise CheckpointError("the checkpoint carries the state of another model")
    leaves = [found[name].to(leaf.device, copy=True) for name, leaf in _leaves(like).items()]
    return pytree.tree_unflatten(leaves, pytree.tree_structure(like))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {k: t for k, t in state.items() if first.setdefault(id(t), k) == k}


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _leaves(state: Any) -> dict[str, Tensor]:
    if state is None:
        return {}
    leaves, _ = pytree.tree_flatten_with_path(state)
    return {pytree.keystr(path): leaf for path, leaf in leaves}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
