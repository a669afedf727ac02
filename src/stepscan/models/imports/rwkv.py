"""`rwkv`: RWKV-4 (arXiv:2305.13048), whose time mixing and channel mixing are layers of their own.

The first norm stands right behind the embedding, so the table is imported normed. Dividing the
stream by 2 every few layers (`rescale_every`), against overflow in float16, changes no logits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stepscan.mixers import MixerConfig
from stepscan.mixers.rwkv4 import RWKV4Config
from stepscan.mixers.rwkv4_channel import RWKV4ChannelConfig
from stepscan.models.config import ModelConfig
from stepscan.models.heads import NextToken
from stepscan.models.imports.base import Format, Settings, Source, Sources

EPS = 1e-5


def config(settings: Settings) -> ModelConfig:
    """Our config."""
    settings.only("tie_word_embeddings", False)
    settings.only("layer_norm_epsilon", EPS)  # the last norm has this one, whatever is said here
    width, vocab = settings.whole("hidden_size"), settings.whole("vocab_size")
    pair: tuple[MixerConfig, ...] = (
        RWKV4Config(expansion=settings.whole("attention_hidden_size", width) / width),
        RWKV4ChannelConfig(expansion=settings.whole("intermediate_size", 4 * width) / width),
    )
    return ModelConfig(
        head=NextToken(vocab=vocab, bias=False),
        layers=pair * settings.whole("num_hidden_layers"),
        width=width,
        tokens=(vocab,),
        mlp_ratio=0.0,
        tie=False,
        norm="layer",
        norm_eps=EPS,
        embedding_scale=1.0,
    )


def sources(settings: Settings) -> Sources:
    """By our names."""
    table, first = RWKV.embedding, "rwkv.blocks.0.pre_ln."

    def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, EPS)

    found: dict[str, str | Source] = {
        "embed.tables.0.weight": Source((table, first + "weight", first + "bias"), normed),
        "norm.weight": "rwkv.ln_out.weight",
        "norm.bias": "rwkv.ln_out.bias",
    }
    for layer in range(settings.whole("num_hidden_layers")):
        theirs = f"rwkv.blocks.{layer}."
        time, channel = theirs + "attention.", theirs + "feed_forward."
        for ours, part, norm in ((2 * layer, time, "ln1."), (2 * layer + 1, channel, "ln2.")):
            for name in ("weight", "bias"):
                found[f"blocks.{ours}.norm.{name}"] = theirs + norm + name
            for name in ("receptance", "key", "value"):
                found[f"blocks.{ours}.mixer.{name}.weight"] = f"{part}{name}.weight"
        mixer = f"blocks.{2 * layer}.mixer."
        found[mixer + "mix"] = _mixes(time, "receptance", "key", "value")
        found[mixer + "decay"] = time + "time_decay"
        found[mixer + "bonus"] = time + "time_first"
        found[mixer + "out.weight"] = time + "output.weight"
        found[f"blocks.{2 * layer + 1}.mixer.mix"] = _mixes(channel, "receptance", "key")
    return found


def _mixes(part: str, *names: str) -> Source:
    names = tuple(f"{part}time_mix_{name}" for name in names)
    return Source(names, lambda *mixes: torch.cat([mix.flatten(0, 1) for mix in mixes]))


RWKV = Format(
    config=config,
    sources=sources,
    embedding="rwkv.embeddings.weight",
    output="head.weight",
)
