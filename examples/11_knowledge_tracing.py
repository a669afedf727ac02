"""Students answer questions and forget: train on their answers, ask what to review, and stream."""

import random
from datetime import datetime, timedelta

import pandas as pd

import stepscan as ss

SKILLS = ("sums", "fractions", "equations")


def answers(students: int = 200) -> pd.DataFrame:
    """Practice helps, time undoes it."""
    draw, rows = random.Random(0), []
    for student in range(students):
        now, ability = datetime(2026, 1, 5), draw.gauss(0, 0.7)
        known = dict.fromkeys(SKILLS, (0.0, now))
        for _ in range(30):
            now += timedelta(hours=draw.choice([0.05, 0.05, 0.05, 30]))
            skill, level = draw.choice(SKILLS), draw.randrange(5)
            strength, met = known[skill]
            strength *= 0.5 ** ((now - met).total_seconds() / 86400)
            odds = 2.718 ** (ability + strength + 1 - 0.6 * level)
            right = draw.random() < odds / (1 + odds)
            known[skill] = strength + 1, now
            rows.append((f"s{student:03}", f"{skill} {level}", skill, right, now))
    return pd.DataFrame(rows, columns=["student", "question", "skill", "correct", "time"])


if __name__ == "__main__":
    model = ss.fit(answers(), steps=60)
    print(model)

    history = [("sums 0", 1), ("sums 2", 1), ("fractions 1", 0), ("fractions 1", 1)]
    times = [f"2026-03-02 09:0{minute}" for minute in range(4)]
    for when in ("2026-03-02 09:05", "2026-03-09 09:05"):
        print(f"to review, {when}:")
        for question, chance in model.review(history, times=times, now=when, top=3):
            print(f"   {question:12} {chance:.0%} likely right")

    _, state = model.stream(history, times=times)
    for right in (1, 0):  # an answer is one step; the state before it stays as it was
        _, after = model.stream([("equations 2", right)], state, times=["2026-03-02 09:06"])
        ((_, chance),) = model.ask(after, ["equations 3"])
        print(f"after equations 2 {'right' if right else 'wrong'}: equations 3 {chance:.0%}")
