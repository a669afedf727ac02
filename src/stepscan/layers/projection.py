"""The linear map of every mixer and model."""

from jaxtyping import Float
from torch import Tensor, nn

from stepscan.ops.projection import project


class Linear(nn.Linear):
    """`torch.nn.Linear`, its weights and initial values, with `project` as its product."""

    def forward(self, input: Float[Tensor, "*n I"]) -> Float[Tensor, "*n O"]:
        """The projection."""
        return project(input, self.weight, self.bias)
