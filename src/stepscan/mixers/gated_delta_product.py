"""Gated DeltaProduct (arXiv:2502.10297): Gated DeltaNet that writes more than once a token.

    S   = alpha_t S_{t-1}
    S   = S + beta_j k_j (v_j - S^T k_j)^T            for j = 1 ... n, beta in (0, 2)
    y_t = W_o (RMSNorm(S_t^T q_t / sqrt(K)) * silu(W_g x_t))

The product of the n Householder matrices I - beta k k^T reaches every orthogonal matrix that leaves
all but n directions alone: with n = 2 a memory rotates, and tracks permutations. It is
`mixers/gated_delta_net.py` with other defaults, those of the paper.
State: B x H x K x V floats and the window's last inputs, constant in T.
Cost: O(T K V n) per head.
"""

from dataclasses import dataclass
from typing import ClassVar

from stepscan.mixers.gated_delta_net import GatedDeltaNetConfig
from stepscan.mixers.taxonomy import Taxonomy


@dataclass(frozen=True, kw_only=True)
class GatedDeltaProductConfig(GatedDeltaNetConfig):
    """Config of Gated DeltaProduct."""

    name: ClassVar[str] = "gated_delta_product"
    equation: ClassVar[str] = "S = a_t S;  n times S = S + b k (v - S^T k)^T;  y = S^T q_t"
    source: ClassVar[str] = "Siems et al. 2025, arXiv:2502.10297"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="delta rule",
        transition="householder",
        gate="input",
        eigenvalues="disc",
        ops=("delta_rule", "short_conv"),
    )

    eig_range: tuple[float, float] = (-1.0, 1.0)
    """By what a write may multiply what was there; (-1, 1) lets a memory track states."""
    n_householder: int = 2
    """Writes per token, each with a key, a value and a strength of its own."""
