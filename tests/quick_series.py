"""A trained model of series without the report and the simple methods that `fit` puts beside it."""

import dataclasses

import torch

from stepscan.apps.candidate import Candidate
from stepscan.apps.kinds import domain_of
from stepscan.apps.model import Model
from stepscan.data.open import open_dataset
from stepscan.train.config import TrainConfig


def quick_series(path, options, out, *, layers, width=16, seed=0, **plan):
    """Saved in `out`, with all that a model of `fit` knows of its data; `plan`: TrainConfig."""
    domain = domain_of(open_dataset(path, options))
    config = domain.config(domain.pattern(layers), width)
    with torch.random.fork_rng():
        candidate = Candidate(
            domain, config, TrainConfig(**{"seed": seed, "evaluations": 4} | plan)
        )
        candidate.trainer.run()
        network = candidate.finish()
    about = {
        "data": path.name,
        "source": str(path),
        "options": dataclasses.asdict(options),
        "reach": domain.reach,
    }
    Model(network, domain.dataset.schema, about).save(out)
    return Model.load(out)
