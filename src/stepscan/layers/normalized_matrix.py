"""Initial values of piecewise-linear recurrences."""

import torch
from jaxtyping import Float
from torch import Tensor


def normalized_positive_definite(size: int) -> Float[Tensor, "E E"]:
    """A random positive definite matrix, its largest eigenvalue 1 (Talathi and Vartak 2015,
    arXiv:1511.03771): a ReLU network that starts from it neither dies nor explodes.
    """
    random = torch.randn(size, size)
    matrix = random.mT @ random / size + torch.eye(size)
    return matrix / torch.linalg.eigvalsh(matrix)[-1]
