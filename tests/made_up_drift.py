"""Users whose taste moves on after a long pause, and users of even habits whose taste stays.

Items fall into tastes; within one some are taken often and some seldom. A user takes items of a
taste, now and then anything. Of users of uneven habits some pauses are long, and after such a pause
the taste is another one: who does not see the pause has to wait for the items to tell. The last
pause of such a user lies one or two items before what is asked in the test.
"""

import numpy as np
import pandas as pd

TASTES, SIZE = 8, 10
DAY = 86_400


def drifting(users=1500, seed=0, *, shortest=14, longest=26, noise=0.3, pause=0.2):
    """A row for each interaction; users called "even..." have even intervals."""
    rng = np.random.default_rng(seed)
    often = 1 / np.arange(1, SIZE + 1)
    often /= often.sum()
    rows = []
    for user in range(users):
        even = user % 2 == 0
        time = 1_600_000_000 + int(rng.integers(200)) * DAY
        taste = int(rng.integers(TASTES))
        size = int(rng.integers(shortest, longest + 1))
        last = size - int(rng.integers(2, 4))
        for step in range(size):
            drawn = rng.random() < pause
            moves = not even and step > 0 and (step == last or (drawn and step < last))
            time += int(DAY * (rng.uniform(10, 20) if moves else rng.uniform(0.9, 1.1)))
            if moves:
                taste = int(taste + rng.integers(1, TASTES)) % TASTES
            of = int(rng.integers(TASTES)) if rng.random() < noise else taste
            item = of * SIZE + int(rng.choice(SIZE, p=often))
            rows.append((f"{'even' if even else 'uneven'}{user}", f"i{item:03}", time))
    return pd.DataFrame(rows, columns=["user", "item", "time"])
