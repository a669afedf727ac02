"""A catalogue with a rule in its words, and users who follow it.

An item is a style, a colour and an animal; a user keeps to one colour and goes through the styles
in order; the animal is a matter of chance. What is never taken before the end is told by its words.
"""

from itertools import product

import numpy as np
import pandas as pd

STYLES = ["baroque", "gothic", "modern", "rustic", "empire", "deco", "naive", "folk"]
COLOURS = ["red", "green", "blue", "white", "black", "amber", "violet", "silver"]
ANIMALS = ["heron", "lynx", "otter", "raven", "badger", "marten"]


def catalogue(words=(STYLES, COLOURS, ANIMALS), start=0):
    rows = [
        (f"i{start + n:04}", f"{colour} {animal}", style)
        for n, (style, colour, animal) in enumerate(product(*words))
    ]
    return pd.DataFrame(rows, columns=["item", "title", "style_name"])


def ratings(items, *, users, steps, new, seed=0):
    """Who took what: the last item of every user is of the share `new` of each colour and style
    that nobody takes before."""
    rng = np.random.default_rng(seed)
    styles = list(dict.fromkeys(items["style_name"]))
    colour = items["title"].str.split().str[0]
    cell = items.groupby([colour, "style_name"])["item"]
    fresh = cell.transform(lambda own: rng.permutation(len(own)) < round(new * len(own)))
    fresh = fresh.astype(bool)
    cells = {
        key: list(own) for key, own in items["item"].groupby([colour, items["style_name"], fresh])
    }
    rows = []
    for user in range(users):
        own, style = rng.choice(colour.unique()), int(rng.integers(len(styles)))
        for step in range(steps):
            choice = cells.get((own, styles[style % len(styles)], new > 0 and step == steps - 1))
            if choice:
                rows.append((f"u{user:03}", rng.choice(choice), 1_700_000_000 + 60 * step + user))
            style += 1
    return pd.DataFrame(rows, columns=["user", "item", "time"]), set(items["item"][fresh])
