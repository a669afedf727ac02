"""The model: embed, residual blocks, norm, head. It obeys the same laws as a mixer.

x = embed(inputs)
x = x + mixer(norm(x));  x = x + mlp(norm(x))        per block
outputs = head(norm(x))

With `norm_place` "after" a block is x = x + norm(mixer(x));  x = x + norm(mlp(x)), with "post" it
is x = norm(x + mixer(x));  x = norm(x + mlp(x)), and the last norm before the head is left out.
The blocks may run several times, `models.looped`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from stepscan.layers.channel import ChannelConfig
from stepscan.layers.learned_positions import LearnedPositions
from stepscan.layers.norm import norm
from stepscan.mixers import Mixer, MixerConfig
from stepscan.models.config import ModelConfig
from stepscan.models.inputs import Embed, Inputs, as_inputs
from stepscan.models.looped import Depth

State = tuple[Any, ...]
"""One mixer state per block, lowest first; of all loops, one after the other. With learned
positions there is one more, the steps since the last reset."""


class Block(nn.Module):
    """A mixer along time and a channel mixer, each on a norm of the stream and added to it."""

    def __init__(
        self, mixer: MixerConfig, channel: ChannelConfig, place: str, config: ModelConfig
    ) -> None:
        super().__init__()
        self.after, self.post = place == "after", place == "post"
        self.norm = norm(config.norm, config.width, config.norm_eps)
        self.mixer: Mixer = mixer.build(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp: nn.Module | None = None
        if config.mlp_ratio:
            mlp = channel.build(config.width, config.mlp_ratio)
            parts = norm(config.norm, config.width, config.norm_eps), mlp
            later = self.after or self.post
            self.mlp = nn.Sequential(*(reversed(parts) if later else parts))
        self.scales = nn.ParameterList()
        if config.layer_scale is not None:
            for _ in range(1 if self.mlp is None else 2):
                self.scales.append(torch.full((config.width,), config.layer_scale))

    def forward(self, x: Tensor, state: Any, resets: Tensor | None) -> tuple[Tensor, Any]:
        """One step up the stack, for all T."""
        if self.post:
            return self._post(x, state, resets)
        y, state = self.mixer(x if self.after else self.norm(x), state, resets)
        y = self.norm(y) if self.after else y
        x = x + self.dropout(self._scaled(y, 0))
        if self.mlp is not None:
            x = x + self.dropout(self._scaled(self.mlp(x), 1))
        return x, state

    def _post(self, x: Tensor, state: Any, resets: Tensor | None) -> tuple[Tensor, Any]:
        y, state = self.mixer(x, state, resets)
        x = self.norm(x + self.dropout(self._scaled(y, 0)))
        if self.mlp is not None:
            assert isinstance(self.mlp, nn.Sequential)
            x = self.mlp[1](x + self.dropout(self._scaled(self.mlp[0](x), 1)))
        return x, state

    def _scaled(self, y: Tensor, branch: int) -> Tensor:
        return y * self.scales[branch] if len(self.scales) else y


class SequenceModel(nn.Module):
    """`model(inputs, state=None, resets=None) -> (outputs, state)`: see the module docstring."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embed(
            config.tokens,
            config.reals,
            config.width,
            config.embedding_scale,
            clock=config.clock,
        )
        self.positions: LearnedPositions | None = None
        if config.positions:
            self.positions = LearnedPositions(config.positions, config.width)
        entry: list[nn.Module] = []
        if config.embedding_norm:
            entry.append(norm(config.norm, config.width, config.norm_eps))
        if config.embedding_dropout:
            entry.append(nn.Dropout(config.embedding_dropout))
        self.entry = nn.Sequential(*entry)
        parts = zip(config.mixers, config.channel_mixers, config.norm_places, strict=True)
        self.blocks = nn.ModuleList(Block(*part, config) for part in parts)
        self.depth = Depth(config)
        self.norm: nn.Module = nn.Identity()
        if config.norm_places[-1] != "post":
            self.norm = norm(config.norm, config.width, config.norm_eps)
        tied = config.tie and config.tokens[:1] == (config.head.vocabulary,)
        table = self.embed.tables[0] if tied else None
        assert table is None or isinstance(table, nn.Embedding)
        self.head = config.head.build(config.width, config.reals, table)
        if config.initial_std is not None:
            _fill(self, config.initial_std)

    @property
    def causal(self) -> bool:
        """Whether every mixer is causal, so that the model can be streamed."""
        return all(mixer.causal for mixer in self._mixers())

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first step of `batch` rows."""
        mixers = tuple(
            mixer.init_state(batch, device=device, dtype=dtype)
            for _ in range(self.config.loops)
            for mixer in self._mixers()
        )
        if self.positions is None:
            return mixers
        return (*mixers, self.positions.init_state(batch, device=device))

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
        count = self.config.loops * len(self.blocks)
        before, steps = (None,) * count if state is None else state[:count], ()
        x = self.embed(inputs)
        if self.positions is not None:
            x, last = self.positions(x, None if state is None else state[count], resets)
            steps = (last,)
        x, after = self.depth.run(self._stack, self.entry(x), before, resets)
        return self.head(self.norm(x), inputs), (*after, *steps)

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


def _fill(model: nn.Module, std: float) -> None:
    """See `ModelConfig.initial_std`."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
