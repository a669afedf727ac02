"""`mamba2`: Mamba-2 (arXiv:2405.21060) in pre-norm blocks without channel mixers."""

import math

from stepscan.mixers.mamba2 import Mamba2Config
from stepscan.models.config import ModelConfig
from stepscan.models.heads import NextToken
from stepscan.models.imports.base import Format, Settings, Sources, each, window


def config(settings: Settings) -> ModelConfig:
    """Our config."""
    settings.only("hidden_act", "silu", "swish")
    width, heads = settings.whole("hidden_size"), settings.whole("num_heads")
    inner = heads * settings.whole("head_dim")
    if inner != int(settings.number("expand", 2) * width):
        raise settings.error(f"num_heads * head_dim, {inner}, is not expand * hidden_size")
    eps = settings.number("layer_norm_epsilon", 1e-5)
    low, high = _limits(settings)
    mixer = Mamba2Config(
        expansion=inner / width,
        states=settings.whole("state_size"),
        heads=heads,
        groups=settings.whole("n_groups"),
        window=settings.whole("conv_kernel"),
        bias=settings.flag("use_bias", False),
        conv_bias=settings.flag("use_conv_bias", True),
        norm_eps=eps,
        step_min=low,
        step_max=high,
    )
    vocab = settings.whole("vocab_size")
    return ModelConfig(
        head=NextToken(vocab=vocab, bias=False),
        layers=(mixer,) * settings.whole("num_hidden_layers"),
        width=width,
        tokens=(vocab,),
        mlp_ratio=0.0,
        tie=settings.flag("tie_word_embeddings", False),
        norm_eps=eps,
        embedding_scale=1.0,
    )


def _limits(settings: Settings) -> tuple[float, float | None]:
    """The bounds of a step; infinity is written in two ways."""
    value = settings.values.get("time_step_limit", [0.0, math.inf])
    try:
        low, high = (float(x["__float__"] if isinstance(x, dict) else x) for x in value)
    except (TypeError, ValueError, KeyError):
        raise settings.error(f"want time_step_limit two numbers, got {value!r:.60}") from None
    return low, None if high == math.inf else high


def sources(settings: Settings) -> Sources:
    """By our names."""
    theirs = "backbone.layers.{i}.mixer."
    return {"norm.weight": "backbone.norm_f.weight"} | each(
        range(settings.whole("num_hidden_layers")),
        {
            "blocks.{i}.norm.weight": "backbone.layers.{i}.norm.weight",
            "blocks.{i}.mixer.inputs.weight": theirs + "in_proj.weight",
            "blocks.{i}.mixer.inputs.bias": theirs + "in_proj.bias",
            "blocks.{i}.mixer.conv.weight": window(theirs + "conv1d.weight"),
            "blocks.{i}.mixer.conv.bias": theirs + "conv1d.bias",
            "blocks.{i}.mixer.step_bias": theirs + "dt_bias",
            "blocks.{i}.mixer.A_log": theirs + "A_log",
            "blocks.{i}.mixer.D": theirs + "D",
            "blocks.{i}.mixer.norm": theirs + "norm.weight",
            "blocks.{i}.mixer.out.weight": theirs + "out_proj.weight",
            "blocks.{i}.mixer.out.bias": theirs + "out_proj.bias",
        },
    )


MAMBA2 = Format(config=config, sources=sources, embedding="backbone.embeddings.weight")
