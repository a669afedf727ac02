"""`recurrent_gemma` (arXiv:2404.07839): Griffin's blocks, local attention, and GEGLU."""

import math

import torch

from stepscan.mixers import MixerConfig
from stepscan.mixers.attention import AttentionConfig
from stepscan.mixers.rg_lru import RGLRUConfig
from stepscan.models.config import ModelConfig
from stepscan.models.heads import NextToken
from stepscan.models.imports.base import (
    Format,
    Settings,
    Source,
    Sources,
    each,
    from_one,
    stacked,
    window,
)
from stepscan.models.imports.rotary import plain_rotary


def config(settings: Settings) -> ModelConfig:
    """Our config."""
    settings.only("hidden_activation", "gelu_pytorch_tanh")
    settings.only("embeddings_scale_by_sqrt_dim", True)
    width, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
    hidden, vocab = settings.whole("intermediate_size") // 2, settings.whole("vocab_size")
    if width % heads or hidden % 8:
        raise settings.error(
            f"num_attention_heads {heads} must divide hidden_size {width}, and 16 the "
            f"intermediate_size, twice {hidden}"
        )
    inner = settings.whole("lru_width", width)
    if inner % heads:
        raise settings.error(f"num_attention_heads {heads} must divide lru_width {inner}")
    mixers: dict[str, MixerConfig] = {
        "recurrent": RGLRUConfig(
            heads=heads, expansion=inner / width, window=settings.whole("conv1d_width", 4)
        ),
        "attention": AttentionConfig(
            heads=heads,
            key_value_heads=settings.whole("num_key_value_heads", heads),
            window=settings.whole("attention_window_size", 2048),
            **plain_rotary(settings, 0.5),
            qkv_bias=settings.flag("attention_bias", False),
            out_bias=True,
        ),
    }
    return ModelConfig(
        head=NextToken(vocab=vocab, bias=False, soft_cap=settings.number("logits_soft_cap", 30.0)),
        layers=tuple(mixers[kind] for kind in _kinds(settings)),
        width=width,
        tokens=(vocab,),
        mlp="geglu[bias=True, approximate='tanh']",
        mlp_ratio=hidden / width,
        tie=settings.flag("tie_word_embeddings", True),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        # The factor has passed through bfloat16, for weights of any type.
        embedding_scale=torch.tensor(math.sqrt(width)).bfloat16().item(),
    )


def _kinds(settings: Settings) -> list[str]:
    """The kind of each layer: a short list, over and over."""
    kinds = settings.values.get("block_types", ["recurrent", "recurrent", "attention"])
    if not isinstance(kinds, list) or not kinds or set(kinds) - {"recurrent", "attention"}:
        raise settings.error(f"want block_types of recurrent and attention, got {kinds!r:.60}")
    layers = settings.whole("num_hidden_layers")
    return (kinds * -(-layers // len(kinds)))[:layers]


def sources(settings: Settings) -> Sources:
    """By our names."""
    theirs, mixer = "model.layers.{i}.", "model.layers.{i}.temporal_block."
    kinds = _kinds(settings)
    maps = [mixer + f"{name}_proj" for name in "qkv"]
    gates = [mixer + f"rg_lru.{name}_gate" for name in ("recurrent", "input")]
    common: Sources = {
        "blocks.{i}.norm.weight": from_one(theirs + "temporal_pre_norm.weight"),
        "blocks.{i}.mlp.0.weight": from_one(theirs + "channel_pre_norm.weight"),
    } | {
        f"blocks.{{i}}.mlp.1.{our}.{part}": f"{theirs}mlp_block.{their}_proj.{part}"
        for our, their in (("gate", "gate"), ("value", "up"), ("out", "down"))
        for part in ("weight", "bias")
    }
    recurrent: Sources = {
        "blocks.{i}.mixer.conv.weight": window(mixer + "conv_1d.weight"),
        "blocks.{i}.mixer.conv.bias": mixer + "conv_1d.bias",
        "blocks.{i}.mixer.gate_weight": Source(
            tuple(f"{gate}_weight" for gate in gates), lambda r, i: torch.stack([r, i]).mT
        ),
        "blocks.{i}.mixer.gate_bias": Source(
            tuple(f"{gate}_bias" for gate in gates), lambda r, i: torch.stack([r, i]).flatten(1)
        ),
        "blocks.{i}.mixer.rate": mixer + "rg_lru.recurrent_param",
    } | {
        f"blocks.{{i}}.mixer.{our}.{part}": f"{mixer}linear_{their}.{part}"
        for our, their in (("input", "x"), ("gate", "y"), ("out", "out"))
        for part in ("weight", "bias")
    }
    attention: Sources = {
        "blocks.{i}.mixer.qkv.weight": stacked(*(name + ".weight" for name in maps)),
        "blocks.{i}.mixer.qkv.bias": stacked(*(name + ".bias" for name in maps)),
        "blocks.{i}.mixer.out.weight": mixer + "o_proj.weight",
        "blocks.{i}.mixer.out.bias": mixer + "o_proj.bias",
    }
    own = {"recurrent": recurrent, "attention": attention}
    found = {"norm.weight": from_one("model.final_norm.weight")}
    for layer, kind in enumerate(kinds):
        found |= each([layer], {**common, **own[kind]})
    return found


RECURRENT_GEMMA = Format(config=config, sources=sources, embedding="model.embed_tokens.weight")
