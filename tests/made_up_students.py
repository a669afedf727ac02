"""Students who learn by practice and forget with time, and the chance each answer really had.

p = sigmoid(ability_u + talent_us + memory_us - difficulty_q)
memory_us falls by exp(-hours / life_s) between answers and rises by `gain` with each answer
"""

import numpy as np
import pandas as pd

START = pd.Timestamp("2024-01-01")


def students(users=400, skills=8, each=6, answers=50, seed=0, gain=1.2, talent=0.5):
    """A frame of answers, and the chance of a right one for each of them."""
    spread = talent
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 1.0, (skills, each))
    life = rng.uniform(10, 60, skills)
    rows, chance = [], []
    for user in range(users):
        ability, talent = rng.normal(0, 0.7), rng.normal(0, spread, skills)
        memory, met, now = np.zeros(skills), np.zeros(skills), 0.0
        skill = int(rng.integers(skills))
        for _ in range(int(rng.integers(answers // 2, answers + 1))):
            now += rng.exponential(0.1) if rng.random() < 0.85 else rng.exponential(60.0)
            if rng.random() < 0.4:
                skill = int(rng.integers(skills))
            question = int(rng.integers(each))
            memory[skill] *= np.exp(-(now - met[skill]) / life[skill])
            met[skill] = now
            logit = ability + talent[skill] + memory[skill] - difficulty[skill, question]
            p = 1 / (1 + np.exp(-logit))
            right = int(rng.random() < p)
            memory[skill] += gain
            rows.append(
                (
                    f"s{user:04}",
                    f"q{skill}.{question}",
                    f"skill {skill}",
                    right,
                    START + pd.Timedelta(hours=now),
                )
            )
            chance.append(p)
    frame = pd.DataFrame(rows, columns=["student", "question", "skill", "correct", "time"])
    return frame, np.array(chance)
