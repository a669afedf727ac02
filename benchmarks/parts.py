"""Which part of a recurrent cell a chaotic system wants: gates, recurrence, attention, one by one.

python benchmarks/parts.py [--systems lorenz96,lorenz] [--seeds 5] [--steps 400] [--out FILE.json]

Cells of `cell_factory`, one layer of width 64, are trained to say the next sample from 24 before,
then run freely from 24 samples of trajectories that they never saw. The number is the valid time in
Lyapunov times, mean and standard deviation over seeds; all seeds are trained at once, as one
batched model. After Heidenreich et al. 2024, arXiv:2410.02654; larger and longer there.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from stepscan.analyze.chaos import valid_time
from stepscan.analyze.speed import machine
from stepscan.cli.speed import write
from stepscan.cli.table import show
from stepscan.mixers import MIXERS
from stepscan.models import ModelConfig, Regress, SequenceModel
from stepscan.tasks import dynamics

RESULT = Path(__file__).parent / "results" / "parts.json"
READ, BATCH, RATE = 24, 16, 4e-3
SYSTEMS = {
    "lorenz96": lambda: dynamics.lorenz96(every=0.1),
    "kuramoto_sivashinsky": lambda: dynamics.kuramoto_sivashinsky(every=1.0),
    "lorenz": lambda: dynamics.lorenz(every=0.05),
    "roessler": lambda: dynamics.roessler(every=0.5),
}
ATTENTION = MIXERS["attention"](heads=4)
SETTINGS = {
    "plain": {"gate": "none", "reset": False},
    "gru": {},
    "lstm": {"gate": "separate", "reset": False, "output_gate": True},
    "highway 2": {"gate": "coupled", "reset": False, "depth": 2},
    "attention": {"gate": "none", "reset": False, "recur": False, "attend": ATTENTION},
    "attention, plain": {"gate": "none", "reset": False, "attend": ATTENTION},
    "attention, gru": {"attend": ATTENTION},
}


def model_of(setting: dict, channels: int, seed: int) -> SequenceModel:
    """One seed."""
    torch.manual_seed(seed)
    layers = (MIXERS["cell_factory"](**setting),)
    head = Regress(outputs=channels)
    return SequenceModel(ModelConfig(width=64, reals=channels, head=head, layers=layers))


def measure(system: dynamics.System, data: Tensor, test: Tensor, setting: dict, args) -> dict:
    """Train all seeds at once; valid times of each."""
    models = [model_of(setting, data.shape[2], seed) for seed in range(args.seeds)]
    weights, buffers = stack_module_state(models)
    weights = {name: p.detach().requires_grad_() for name, p in weights.items()}
    base = models[0].to("meta")

    def step(weights: dict, buffers: dict, x: Tensor) -> Tensor:
        return x + functional_call(base, (weights, buffers), (x,))[0]  # what changes is learned

    every = vmap(step)
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, args.steps, pct_start=0.1)
    rng = torch.Generator().manual_seed(0)
    start, loss = time.perf_counter(), torch.tensor(0.0)
    for _ in range(args.steps):
        row = torch.randint(len(data), (args.seeds, BATCH, 1), generator=rng)
        at = torch.randint(data.shape[1] - READ - 1, row.shape, generator=rng)
        x = data[row, at + torch.arange(READ + 1)]
        loss = (every(weights, buffers, x[:, :, :-1]) - x[:, :, 1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        for p in weights.values():  # each seed by itself
            if p.grad is not None:
                size = p.grad.flatten(1).norm(dim=1).clamp_min(1.0)
                p.grad /= size.view(-1, *[1] * (p.ndim - 1))
        optimizer.step()
        plan.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        x, said = test[:, :READ].expand(args.seeds, -1, -1, -1), []
        for _ in range(test.shape[1] - READ):
            y = every(weights, buffers, x)[:, :, -1:]
            said.append(y)
            x = torch.cat([x[:, :, 1:], y], 2)
    raw = torch.cat(said, 2).double() * test.new_tensor(system.scale).double()
    raw = raw + test.new_tensor(system.mean).double()
    truth = test[:, READ:].double() * test.new_tensor(system.scale) + test.new_tensor(system.mean)
    times = torch.stack([valid_time(run, truth, system).mean() for run in raw])
    size = sum(p.numel() for p in models[0].parameters())
    return {
        "valid time": times.mean().item(),
        "sd": times.std().item() if len(times) > 1 else 0.0,
        "last loss": loss.item(),
        "parameters": size,
        "seconds": seconds,
    }


def main() -> None:
    """A row for each system and setting, as they are measured."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--systems", default=",".join(SYSTEMS))
    words.add_argument("--seeds", type=int, default=5)
    words.add_argument("--steps", type=int, default=400)
    words.add_argument("--out", type=Path, default=RESULT)
    args = words.parse_args()
    os.environ["STEPSCAN_KERNELS"] = "off"  # native kernels cannot be batched over seeds
    rows = []
    command = " ".join(["python benchmarks/parts.py", *sys.argv[1:]])
    for name in args.systems.split(","):
        system = SYSTEMS[name]()
        parts = [
            system.standardized(
                dynamics.trajectories(system, n, T, torch.Generator().manual_seed(seed), settle=300)
            ).float()
            for n, T, seed in ((64, 512, 0), (64, READ + 100, 1))
        ]
        for label, setting in SETTINGS.items():
            found = measure(system, *parts, setting, args)
            rows.append({"system": name, "cell": label, **found})
            print(json.dumps(rows[-1]), flush=True)
            done = {"command": command, **machine.describe(), "rows": rows}
            write(args.out, json.dumps(done, indent=1) + "\n")
    show(rows, as_json=False)


if __name__ == "__main__":
    main()
