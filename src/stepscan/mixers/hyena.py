"""Hyena (arXiv:2302.10866): long convolutions, whose filters a small network draws, and gates.

    p_t^0, .., p_t^N = conv3(W_p x)_t,   z^1 = p^N                     N = order, n = 1 .. N-1
    w^n = p^{N-n} . z^n,   z^{n+1} = h^n * w^n + d^n . w^n             * causal, over L tokens
    y_t = W_o (p_t^0 . z_t^N)
    h_l = exp(-rate l / (L - 1)) net(features(l))                      linear, 3 times sin linear

features(l): l / (L - 1) and the cosines and sines of `bands` frequencies. The sines have learned
frequencies, 14 at first; the rates of the window are fixed, from log(100) / 1.5 to log(100) / 0.3
over the channels; d is normal. Order 2 has one long filter, as in the authors' code: the window of
3 is the first of the paper's two. A filter ends after `length` tokens, whatever the input's length.
State: (N - 1) x (L - 1) x D floats and two tokens of N + 1 projections.
Cost: O(T L D / 64) numbers in spectra of 128, and the filters' network once per call, O(L D).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.convolution import ShortConv
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.long_conv import long_conv
from stepscan.ops.projection import project

SLOW, FAST, TARGET = 1.5, 0.3, 1e-2  # a window is TARGET after SLOW .. FAST of the length
SINE = 14.0


@dataclass(frozen=True, kw_only=True)
class HyenaConfig(MixerConfig):
    """Config of Hyena."""

    name: ClassVar[str] = "hyena"
    equation: ClassVar[str] = "y = W_o (p0 . (h * (p1 . p2)));  h = window . net(position), long"
    source: ClassVar[str] = "Poli et al. 2023, arXiv:2302.10866"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="convolution",
        ops=("long_conv", "short_conv"),
    )

    order: int = 2
    """N: one more than the long convolutions."""
    length: int = 512
    """Tokens L that a filter sees, the current one included."""
    bands: int = 16
    """Frequencies of the position."""
    filter_width: int = 64
    """Inner width of the filters' network."""
    window: int = 3
    """Tokens seen by the short convolution of the projections."""

    def build(self, width: int) -> "Hyena":
        """Build the module for a model of this width."""
        if self.order < 2 or self.length < 2 or min(self.bands, self.filter_width, self.window) < 1:
            raise ValueError(
                "hyena: want order and length at least 2, bands, filter_width and window at least "
                f"1, got {self.order}, {self.length}, {self.bands}, {self.filter_width} and "
                f"{self.window}"
            )
        return Hyena(self, width)


class HyenaState(NamedTuple):
    """What `Hyena` carries from one stretch to the next."""

    window: Float[Tensor, "B W-1 E"]
    inputs: tuple[Tensor, ...]
    """Of each long convolution, [B, L - 1, D]."""


class Hyena(Mixer[HyenaState]):
    """See the module docstring."""

    no_decay = ("frequency", "skip")

    def __init__(self, config: HyenaConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        inner, filters = config.filter_width, width * (config.order - 1)
        self.project = Linear(width, (config.order + 1) * width)
        self.conv = ShortConv((config.order + 1) * width, config.window, activation=None)
        sizes = (1 + 2 * config.bands, inner, inner, inner)
        self.net = nn.ModuleList(Linear(i, inner) for i in sizes[:3])
        self.draw = Linear(inner, filters, bias=False)
        self.frequency = nn.Parameter(torch.empty(3, inner))
        self.skip = nn.Parameter(torch.empty(config.order - 1, width))
        self.out = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the sines and the skips."""
        nn.init.constant_(self.frequency, SINE)
        nn.init.normal_(self.skip)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> HyenaState:
        """No inputs yet."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        past = (self.config.length - 1, self.width)
        inputs = (window.new_zeros(batch, *past) for _ in range(self.config.order - 1))
        return HyenaState(window, tuple(inputs))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: HyenaState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], HyenaState]:
        """Mix along T."""
        window, inputs = self.init_state(len(x)) if state is None else state
        projected, window = self.conv(self.project(x), window, resets)
        last, *gates, z = projected.split(self.width, -1)
        tails: list[Tensor] = []
        weights = zip(reversed(gates), self.filters(), self.skip, inputs, strict=True)
        for gate, kernel, skip, past in weights:
            z = gate * z
            c, tail = long_conv(z, kernel, state=past, resets=resets)
            z = c + skip * z
            tails.append(tail)
        return self.out(last * z), HyenaState(window, tuple(tails))

    def filters(self) -> Float[Tensor, "_ D L"]:
        """The long filters, float32 or wider: what the network says for every lag."""
        wide = torch.promote_types(self.draw.weight.dtype, torch.float32)
        length, bands = self.config.length, self.config.bands
        device = self.draw.weight.device
        lag = torch.arange(length, device=device, dtype=wide)
        turns = torch.linspace(1e-4, bands - 1, bands, device=device, dtype=wide)
        angle = 2 * math.pi / length * lag[:, None] * turns
        time = (lag / (length - 1))[:, None]
        h = torch.cat([time, angle.cos(), -angle.sin()], -1)
        for layer, frequency in zip(self.net, self.frequency.to(wide), strict=True):
            weight, bias = (p.to(wide) for p in layer.parameters())
            h = (frequency * project(h, weight, bias)).sin()
        h = project(h, self.draw.weight.to(wide))
        fastest, slowest = -math.log(TARGET) / FAST, -math.log(TARGET) / SLOW
        rate = torch.linspace(slowest, fastest, h.shape[1], device=device, dtype=wide)
        h = h * (-time * rate).exp()
        return h.mT.unflatten(0, (-1, self.width))
