"""`mamba`: Mamba (arXiv:2312.00752) in pre-norm blocks without channel mixers."""

import math

from stepscan.mixers.mamba import MambaConfig
from stepscan.models.config import ModelConfig
from stepscan.models.heads import NextToken
from stepscan.models.imports.base import Format, Settings, Sources, each, window


def config(settings: Settings) -> ModelConfig:
    """Our config."""
    settings.only("hidden_act", "silu", "swish")
    width = settings.whole("hidden_size")
    automatic = settings.values.get("time_step_rank", "auto") == "auto"
    mixer = MambaConfig(
        expansion=int(settings.number("expand", 2) * width) / width,
        states=settings.whole("state_size"),
        window=settings.whole("conv_kernel"),
        step_rank=math.ceil(width / 16) if automatic else settings.whole("time_step_rank"),
        bias=settings.flag("use_bias", False),
        conv_bias=settings.flag("use_conv_bias", True),
    )
    return backbone(settings, (mixer,) * settings.whole("num_hidden_layers"))


def backbone(settings: Settings, layers: tuple[MambaConfig, ...]) -> ModelConfig:
    """The model around the mixers."""
    vocab = settings.whole("vocab_size")
    return ModelConfig(
        head=NextToken(vocab=vocab, bias=False),
        layers=layers,
        width=settings.whole("hidden_size"),
        tokens=(vocab,),
        mlp_ratio=0.0,
        tie=settings.flag("tie_word_embeddings", True),
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        embedding_scale=1.0,
    )


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
            "blocks.{i}.mixer.selection.weight": theirs + "x_proj.weight",
            "blocks.{i}.mixer.step.weight": theirs + "dt_proj.weight",
            "blocks.{i}.mixer.step_bias": theirs + "dt_proj.bias",
            "blocks.{i}.mixer.A_log": theirs + "A_log",
            "blocks.{i}.mixer.D": theirs + "D",
            "blocks.{i}.mixer.out.weight": theirs + "out_proj.weight",
            "blocks.{i}.mixer.out.bias": theirs + "out_proj.bias",
        },
    )


MAMBA = Format(config=config, sources=sources, embedding="backbone.embeddings.weight")
