"""The model: embed, residual blocks, norm, head. It obeys the same laws as a mixer.

x = embed(inputs)
x = x + mixer(norm(x));  x = x + mlp(norm(x))        per block
outputs = head(norm(x))

With `norm_place` "after" a block is x = x + norm(mixer(x));  x = x + norm(mlp(x)).
The blocks may run several times, `models.looped`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from stepscan.layers.channel import ChannelConfig
from stepscan.layers.norm import norm
from stepscan.mixers import Mixer, MixerConfig
from stepscan.models.config import ModelConfig
from stepscan.models.inputs import Embed, Inputs, as_inputs
from stepscan.models.looped import Depth

State = tuple[Any, ...]
"""One mixer state per block, lowest first; of all loops, one after the other."""


class Block(nn.Module):
    """A mixer along time and a channel mixer, each on a norm of the stream and added to it."""

    def __init__(
        self, mixer: MixerConfig, channel: ChannelConfig, place: str, config: ModelConfig
    ) -> None:
        super().__init__()
        self.after = place == "after"
        self.norm = norm(config.norm, config.width, config.norm_eps)
        self.mixer: Mixer = mixer.build(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp: nn.Module | None = None
        if config.mlp_ratio:
            mlp = channel.build(config.width, config.mlp_ratio)
            parts = norm(config.norm, config.width, config.norm_eps), mlp
            self.mlp = nn.Sequential(*(reversed(parts) if self.after else parts))
        self.scales = nn.ParameterList()
        if config.layer_scale is not None:
            for _ in range(1 if self.mlp is None else 2):
                self.scales.append(torch.full((config.width,), config.layer_scale))

    def forward(self, x: Tensor, state: Any, resets: Tensor | None) -> tuple[Tensor, Any]:
        """One step up the stack, for all T."""
        y, state = self.mixer(x if self.after else self.norm(x), state, resets)
        y = self.norm(y) if self.after else y
        x = x + self.dropout(self._scaled(y, 0))
        if self.mlp is not None:
            x = x + self.dropout(self._scaled(self.mlp(x), 1))
        return x, state

    def _scaled(self, y: Tensor, branch: int) -> Tensor:
        return y * self.scales[branch] if len(self.scales) else y


class SequenceModel(nn.Module):
    """`model(inputs, state=None, resets=None) -> (outputs, state)`: see the module docstring."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embed(config.tokens, config.reals, config.width, config.embedding_scale)
        parts = zip(config.mixers, config.channel_mixers, config.norm_places, strict=True)
        self.blocks = nn.ModuleList(Block(*part, config) for part in parts)
        self.depth = Depth(config)
        self.norm = norm(config.norm, config.width, config.norm_eps)
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
        return tuple(
            mixer.init_state(batch, device=device, dtype=dtype)
            for _ in range(self.config.loops)
            for mixer in self._mixers()
        )

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
        count = self.config.loops * len(self.blocks)
        x, state = self.depth.run(
            self._stack, x, (None,) * count if state is None else state, resets
        )
        return self.head(self.norm(x), inputs), state

    def _stack(self, x: Tensor, before: State, resets: Tensor | None) -> tuple[Tensor, State]:
        """All blocks, once."""
        after: list[Any] = []
        for block, part in zip(self.blocks, before, strict=True):
            x, part = block(x, part, resets)  # noqa: PLW2901
            after.append(part)
        return x, tuple(after)

    if TYPE_CHECKING:

        def __call__(  # noqa: D102
            self,
            inputs: Tensor | Inputs,
            state: State | None = None,
            resets: Tensor | None = None,
        ) -> tuple[Any, State]: ...
