"""Tomita's seven regular languages over {0, 1}, as automata and, independently, as predicates."""

import re
from itertools import pairwise

from stepscan.analyze.automata import Automaton

TOMITA = {
    1: Automaton((True, False), ((1, 0), (1, 1))),  # 1*
    2: Automaton((True, False, False), ((2, 1), (0, 2), (2, 2))),  # (10)*
    # no odd run of 1 with an odd run of 0 right after it
    3: Automaton((True, True, False, True, False), ((0, 1), (2, 0), (3, 4), (2, 1), (4, 4))),
    4: Automaton((True, True, True, False), ((1, 0), (2, 0), (3, 0), (3, 3))),  # no 000
    # an even number of 0 and an even number of 1
    5: Automaton((True, False, False, False), ((1, 2), (0, 3), (3, 0), (2, 1))),
    6: Automaton((True, False, False), ((1, 2), (2, 0), (0, 1))),  # #0 - #1 divisible by 3
    7: Automaton(
        (True, True, True, True, False), ((0, 1), (2, 1), (2, 3), (4, 3), (4, 4))
    ),  # 0*1*0*1*
}


def _runs(string):
    return [(run[0], len(run)) for run in re.findall("0+|1+", "".join(map(str, string)))]


def _third(string):
    runs = _runs(string)
    return not any(a == "1" and n % 2 and m % 2 for (a, n), (_, m) in pairwise(runs))


def _matches(pattern):
    return lambda string: re.fullmatch(pattern, "".join(map(str, string))) is not None


LANGUAGES = {
    1: _matches("1*"),
    2: _matches("(10)*"),
    3: _third,
    4: lambda string: "000" not in "".join(map(str, string)),
    5: lambda string: string.count(0) % 2 == 0 and string.count(1) % 2 == 0,
    6: lambda string: (string.count(0) - string.count(1)) % 3 == 0,
    7: _matches("0*1*0*1*"),
}
