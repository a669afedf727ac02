"""What a mixer is, in the terms of the field; the tests hold it against what is measured.

`analyze/transition.py` measures the Jacobian from one state to the next.
"""

from dataclasses import dataclass
from typing import Literal

Family = Literal[
    "softmax attention",
    "linear attention",
    "delta rule",
    "state space",
    "test-time memory",
    "gated RNN",
    "nonlinear RNN",
    "convolution",
    "several memories",
    "hybrid",
]
Transition = Literal["none", "scalar", "diagonal", "householder", "dense", "nonlinear"]
Gate = Literal["none", "fixed", "input", "state"]
Eigenvalues = Literal["-", "1", "[0, 1]", "[-1, 1]", "disc", "any"]


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """One row of the table, for the default options."""

    family: Family
    """Its nearest kin."""
    transition: Transition = "none"
    """What a step does to the old state: one factor per head (scalar), per number (diagonal), a
    diagonal and one direction or a few (householder), any matrix (dense), anything (nonlinear);
    none where tokens are kept as they are, until they leave."""
    gate: Gate = "none"
    """What the transition depends on: nothing but the weights (fixed), the input, or the state."""
    eigenvalues: Eigenvalues = "-"
    """Where those of the transition lie; disc: complex, of modulus up to 1."""
    ops: tuple[str, ...] = ()
    """The ops it runs on, that of its memory first: they say which parallel and native forms are
    there."""
