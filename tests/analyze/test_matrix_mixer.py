"""The matrices behind bidirectional mixers."""

import pytest
import torch

from stepscan.analyze.matrix_mixer import materialize
from stepscan.mixers import MIXERS

WIDTH, T, STATES = 16, 20, 3
QUASISEPARABLE = {"combine": "quasiseparable", "states": STATES}
every_matrix = pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hydra", QUASISEPARABLE),
        ("hydra", {"combine": "add", "states": STATES}),
        ("bi_gla", {"key_ratio": 3 / 8}),
    ],
    ids=lambda o: o if isinstance(o, str) else "-".join(map(str, o.values())),
)


def built(name, options):
    return MIXERS[name](**options).build(WIDTH).double(), torch.randn(2, T, WIDTH).double()


def off_diagonal_ranks(matrix):
    """The greatest rank of a block strictly below the diagonal, and of one above."""
    below = max(int(torch.linalg.matrix_rank(matrix[..., t:, :t]).max()) for t in range(1, T))
    above = max(int(torch.linalg.matrix_rank(matrix[..., :t, t:]).max()) for t in range(1, T))
    return below, above


@every_matrix
def test_the_matrix_is_the_mixer(name, options):
    mixer, x = built(name, options)
    values, _, gate, _ = mixer.select(x)
    y = torch.einsum("bhts,bshp->bthp", materialize(mixer, x), values)
    torch.testing.assert_close(mixer.finish(y, gate), mixer(x)[0], atol=1e-10, rtol=0)


@every_matrix
def test_what_is_off_the_diagonal_passes_through_the_state(name, options):
    """The rank of blocks off the diagonal is bounded by the size of a key."""
    mixer, x = built(name, options)
    assert off_diagonal_ranks(materialize(mixer, x)) == (STATES, STATES)


def test_only_the_shifted_passes_leave_the_diagonal_free():
    """With both passes shifted, what a token makes of itself is its own number and no more."""
    mixer, x = built("hydra", QUASISEPARABLE)
    _, selection, *_ = mixer.select(x)
    diagonal = materialize(mixer, x).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(diagonal, selection.diagonal.mT)
    mixer, x = built("hydra", QUASISEPARABLE | {"combine": "add"})
    _, selection, *_ = mixer.select(x)
    diagonal = materialize(mixer, x).diagonal(dim1=-2, dim2=-1)
    assert (diagonal - selection.diagonal.mT).abs().min() > 0


@pytest.mark.plain
@pytest.mark.parametrize("name", ["hydra", "mamba"])
def test_what_is_no_matrix_says_so(name):
    options = {"combine": "multiply"} if name == "hydra" else {}
    mixer, x = built(name, options)
    with pytest.raises(ValueError, match="want a mixer that is one matrix per head"):
        materialize(mixer, x)
