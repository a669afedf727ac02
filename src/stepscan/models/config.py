"""The config of a whole model: frozen, plain values, the same in Python and in config.json."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepscan import mixers
from stepscan.layers.channel import ChannelConfig, channel_config
from stepscan.layers.norm import NORMS
from stepscan.layers.time_encoding import COLUMNS
from stepscan.mixers import MixerConfig
from stepscan.models import heads
from stepscan.models.heads import HeadConfig
from stepscan.models.looped import Adaptive, Fixed, halting
from stepscan.models.pattern import MOST, parse, parse_with
from stepscan.names import lookup

LARGEST = 1 << 24  # of any size in a config: a file from elsewhere must not ask for the moon


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model from inputs to head. `layers` is a pattern or a tuple of mixer configs."""

    head: HeadConfig
    """What the model says after every step."""
    layers: str | tuple[MixerConfig, ...] = "(gated_delta_net*3 attention)*1"
    """Lowest layer first; a pattern is read once, here, and kept as configs."""
    width: int = 128
    """Model width D."""
    tokens: tuple[int, ...] = ()
    """Vocabulary size of each categorical input column."""
    reals: int = 0
    """Number of real input columns."""
    clock: bool = False
    """Whether the real inputs tell times, see `layers.time_encoding`."""
    mlp_ratio: float = 2.0
    """Hidden width of the channel mixers, as a multiple of D; 0 leaves them out."""
    mlp: str = "swiglu"
    """Channel mixers, a pattern like that of the layers, repeated up the stack: swiglu, or
    "swiglu moe[experts=8, top=2]" for experts in every second block."""
    layer_scale: float | None = None
    """Initial value of a factor per channel on what a block adds; None: no factors."""
    loops: int = 1
    """How many times the stack runs, with the same weights."""
    halt: str = "fixed"
    """When a token stops looping: fixed, after all loops; act[cost=0.01], on its own."""
    identity_bias: float | None = None
    """Let a gate decide what a loop changes, biased this far towards nothing; None: no gate."""
    loop_embedding: bool = False
    """Tell the stack the number of the loop."""
    dropout: float = 0.0
    """Probability of dropping a channel of a block's output while training."""
    tie: bool = True
    """Share the input embedding with the output map where their vocabularies are the same."""
    norm: str = "rms"
    """Norm before every mixer, channel mixer and the head: rms or layer."""
    norm_place: str = "before"
    """Where the norms of a block stand, a pattern like `mlp`: before what they serve; after it, on
    what it adds to the stream (as in OLMo 2, arXiv:2501.00656); or on the sum of both, as in the
    first Transformer and BERT: post. Then there is none between the last block and the head."""
    norm_eps: float | None = None
    """Added to the mean square under the root; None: the machine's for rms, 1e-5 for layer."""
    embedding_scale: float | None = None
    """Factor of token embeddings as they enter the stack; None: sqrt(width)."""
    positions: int = 0
    """Learned positions to add to the embeddings; steps beyond the last share it. 0: none."""
    embedding_norm: bool = False
    """Norm what enters the stack, as in BERT (arXiv:1810.04805)."""
    embedding_dropout: float = 0.0
    """Probability of dropping a channel of what enters the stack while training."""
    initial_std: float | None = None
    """Draw every linear map and table from a normal distribution this wide, with biases of zero, as
    BERT does (0.02); None: as each mixer was published."""

    def __post_init__(self) -> None:
        """Read the pattern, tell each mixer its depth, and reject what cannot be built."""
        layers = parse(self.layers) if isinstance(self.layers, str) else tuple(self.layers)
        if not 1 <= len(layers) <= MOST:
            raise ValueError(f"model: want 1 to {MOST} layers, got {len(layers)}")
        placed = (_placed(config, i, len(layers)) for i, config in enumerate(layers))
        object.__setattr__(self, "layers", tuple(placed))
        if not self.tokens and not self.reals:
            raise ValueError("model: want at least one input column (tokens or reals), got none")
        sizes = {"width": self.width, **{f"tokens[{i}]": n for i, n in enumerate(self.tokens)}}
        for name, size in sizes.items():
            if not isinstance(size, int) or not 1 <= size <= LARGEST:
                raise ValueError(f"model: want {name} from 1 to {LARGEST:,}, got {size!r}")
        if not isinstance(self.reals, int) or not 0 <= self.reals <= LARGEST:
            raise ValueError(f"model: want reals from 0 to {LARGEST:,}, got {self.reals!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model: want 0 <= dropout < 1, got {self.dropout}")
        self._check_entry()
        lookup(NORMS, self.norm, kind="norm")
        if self.norm_eps is not None and not 0 <= self.norm_eps < 1:
            raise ValueError(f"model: want 0 <= norm_eps < 1, got {self.norm_eps}")
        for name, read in (("mlp", channel_config), ("norm_place", _place)):
            pattern = getattr(self, name)
            if len(self.mixers) % len(parse_with(read, pattern)):
                raise ValueError(
                    f"model: want {name}={pattern!r} to fit {len(self.mixers)} layers a whole "
                    "number of times"
                )
        if not isinstance(self.loops, int) or not 1 <= self.loops <= MOST:
            raise ValueError(f"model: want loops from 1 to {MOST}, got {self.loops!r}")
        if isinstance(self.halting, Adaptive) and self.loops < 2:
            raise ValueError(f"model: halt={self.halt!r} wants loops at least 2, got {self.loops}")
        if not 0 <= self.mlp_ratio <= 64:
            raise ValueError(f"model: want 0 <= mlp_ratio <= 64, got {self.mlp_ratio}")

    def _check_entry(self) -> None:
        """What stands between the inputs and the stack."""
        if self.clock and (self.reals != COLUMNS or not self.tokens):
            raise ValueError(
                f"model: want tokens and reals={COLUMNS} with a clock, got {self.reals}"
            )
        if not 0 <= self.embedding_dropout < 1:
            raise ValueError(
                f"model: want 0 <= embedding_dropout < 1, got {self.embedding_dropout}"
            )
        if not isinstance(self.positions, int) or not 0 <= self.positions <= LARGEST:
            raise ValueError(f"model: want positions from 0 to {LARGEST:,}, got {self.positions!r}")
        if self.initial_std is not None and not self.initial_std > 0:
            raise ValueError(f"model: want initial_std above 0 or None, got {self.initial_std}")

    @property
    def mixers(self) -> tuple[MixerConfig, ...]:
        """`layers`, after the pattern was read."""
        assert not isinstance(self.layers, str)
        return self.layers

    @property
    def channel_mixers(self) -> tuple[ChannelConfig, ...]:
        """One for each layer."""
        pattern = parse_with(channel_config, self.mlp)
        return pattern * (len(self.mixers) // len(pattern))

    @property
    def norm_places(self) -> tuple[str, ...]:
        """One for each layer."""
        pattern = parse_with(_place, self.norm_place)
        return pattern * (len(self.mixers) // len(pattern))

    @property
    def halting(self) -> Fixed | Adaptive:
        """`halt`, after it was read."""
        found = parse_with(halting, self.halt)
        if len(found) > 1:
            raise ValueError(f"model: want one halt, got {self.halt!r}")
        return found[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every option spelled out, so that later defaults cannot change a file."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        layers = [mixers.to_dict(c) for c in self.mixers]
        return data | {
            "head": heads.to_dict(self.head),
            "layers": layers,
            "tokens": list(self.tokens),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`; unknown keys, names and impossible sizes are errors."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        for key in data:
            lookup(known, key, kind="field of ModelConfig")
        _bounded(data, "config")
        layers = data.get("layers", ())
        if not isinstance(layers, str):
            layers = tuple(mixers.from_dict(layer) for layer in layers)
        return cls(
            **dict(data)
            | {"head": heads.from_dict(data.get("head", {})), "layers": layers}
            | {"tokens": tuple(data.get("tokens", ()))}
        )


def _placed(config: MixerConfig, layer: int, layers: int) -> MixerConfig:
    """A mixer whose initial values depend on depth has these two fields: fill them in."""
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    changed: dict[str, Any] = {
        name: _placed(value, layer, layers)
        for name, value in options.items()
        if isinstance(value, MixerConfig)
    }
    if {"layer", "layers"} <= options.keys():
        changed |= {"layer": layer, "layers": layers}
    return dataclasses.replace(config, **changed) if changed else config


def _place(data: Mapping[str, Any]) -> str:
    """A word of `norm_place`."""
    if len(data) > 1:
        raise ValueError(f"norm_place: want no options, got {dict(data)}")
    lookup(dict.fromkeys(("before", "after", "post")), data["name"], kind="norm_place")
    return data["name"]


def _bounded(data: object, where: str) -> None:
    if isinstance(data, Mapping):
        for key, value in data.items():
            _bounded(value, f"{where}.{key}")
    elif isinstance(data, list | tuple):
        if len(data) > LARGEST:
            raise ValueError(f"{where}: {len(data):,} entries are too many")
        for i, value in enumerate(data):
            _bounded(value, f"{where}[{i}]")
    elif isinstance(data, int | float) and not -LARGEST <= data <= LARGEST:
        raise ValueError(f"{where}: want a number up to {LARGEST:,}, got {data!r}")
