"""The model: embed, pre-norm residual blocks, norm, head. It obeys the same laws as a mixer.

x = embed(inputs)
x = x + mixer(norm(x));  x = x + mlp(norm(x))        per block
outputs = head(norm(x))
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from stepscan.layers.mlp import SwiGLU
from stepscan.mixers import Mixer, MixerConfig
from stepscan.models.config import ModelConfig
from stepscan.models.inputs import Embed, Inputs, as_inputs

State = tuple[Any, ...]
"""One mixer state per block, lowest first."""


class Block(nn.Module):
    """A mixer along time and a channel mixer, each on a norm of the stream and added to it."""

    def __init__(self, mixer: MixerConfig, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width)
        self.mixer: Mixer = mixer.build(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp: nn.Module | None = None
        if config.mlp_ratio:
            mlp = SwiGLU(config.width, config.mlp_ratio)
            self.mlp = nn.Sequential(nn.RMSNorm(config.width), mlp)

    def forward(self, x: Tensor, state: Any, resets: Tensor | None) -> tuple[Tensor, Any]:
        """One step up the stack, for all T."""
        y, state = self.mixer(self.norm(x), state, resets)
        x = x + self.dropout(y)
        if self.mlp is not None:
            x = x + self.dropout(self.mlp(x))
        return x, state


class SequenceModel(nn.Module):
    """`model(inputs, state=None, resets=None) -> (outputs, state)`: see the module docstring."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embed(config.tokens, config.reals, config.width)
        self.blocks = nn.ModuleList(Block(mixer, config) for mixer in config.mixers)
        self.norm = nn.RMSNorm(config.width)
        tied = config.tie and config.tokens[:1] == (config.head.vocabulary,)
        table = self.embed.tables[0] if tied else None
        assert table is None or isinstance(table, nn.Embedding)
        self.head = config.head.build(config.width, config.reals, table)

    @property
    def causal(self) -> bool:
        """Whether every mixer is causal, so that the model can be streamed."""
        return all(mixer.causal for mixer in self._mixers())

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first step of `batch` rows."""
        states = (m.init_state(batch, device=device, dtype=dtype) for m in self._mixers())
        return tuple(states)

    def _mixers(self) -> Iterator[Mixer]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block.mixer

    def forward(
        self,
        inputs: Tensor | Inputs,
        state: State | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Any, State]:
        """Outputs after every step of this stretch, and the state after it."""
        inputs = as_inputs(inputs, self.config.tokens, self.config.reals)
        x = self.embed(inputs)
        before = (None,) * len(self.blocks) if state is None else state
        after: list[Any] = []
        for block, part in zip(self.blocks, before, strict=True):
            x, part = block(x, part, resets)  # noqa: PLW2901
            after.append(part)
        return self.head(self.norm(x), inputs), tuple(after)

    if TYPE_CHECKING:

        def __call__(  # noqa: D102
            self,
            inputs: Tensor | Inputs,
            state: State | None = None,
            resets: Tensor | None = None,
        ) -> tuple[Any, State]: ...
