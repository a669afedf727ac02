"""The simple method for people who come back to what they took before."""

import numpy as np
import pandas as pd
import torch

from stepscan.apps.baselines.lately import lately
from stepscan.apps.kinds import domain_of
from stepscan.data.base import DataOptions, Packed
from stepscan.data.open import open_dataset


def test_the_newest_item_first_then_what_is_popular():
    tokens = torch.tensor([3, 1, 3, 2, 4, 4])[:, None]
    packed = Packed(torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.bool), tokens=tokens)
    popular = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.35, 0.05])
    found = lately(packed, torch.tensor([1, 0]), popular)
    assert found[0].argsort(descending=True).tolist() == [4, 3, 2, 1, 5, 0]
    assert found[1].argsort(descending=True).tolist() == [2, 3, 1, 4, 5, 0]


def test_it_is_ahead_where_everybody_keeps_to_a_few_songs():
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"s{rng.choice(4) * 40 + user}", when)
        for user in range(40)
        for when in range(12)
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    options = DataOptions(kind="interactions", minimum=1)
    found = dict(domain_of(open_dataset(frame, options)).baselines())
    assert found["taken lately"]["HR@10"] > 0.9
    assert found["popularity"]["HR@10"] < 0.5
    assert list(found) == ["popularity", "taken lately", "Markov chain"]
