"""`olmo_hybrid`: Gated DeltaNet, every few layers attention with its norms behind, and SwiGLU."""

import torch

from stepscan.mixers import MixerConfig
from stepscan.mixers.attention import AttentionConfig
from stepscan.mixers.gated_delta_net import GatedDeltaNetConfig
from stepscan.models.config import ModelConfig
from stepscan.models.heads import NextToken
from stepscan.models.imports.base import Format, Settings, Source, Sources, each, stacked
from stepscan.models.imports.qwen3_next import layer_kinds
from stepscan.models.imports.rotary import plain_rotary


def config(settings: Settings) -> ModelConfig:
    """Our config."""
    settings.only("hidden_act", "silu", "swish")
    width, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
    hidden, vocab = settings.whole("intermediate_size"), settings.whole("vocab_size")
    if hidden % 8 or width % heads:
        raise settings.error(
            f"num_attention_heads {heads} must divide hidden_size {width}, and 8 the "
            f"intermediate_size {hidden}"
        )
    bias = settings.flag("attention_bias", False)
    mixers: dict[str, MixerConfig] = {
        "linear_attention": _delta_net(settings, width, heads),
        "full_attention": AttentionConfig(
            heads=heads,
            key_value_heads=settings.whole("num_key_value_heads", heads),
            **plain_rotary(settings, 1.0),
            qk_norm=True,
            qk_norm_whole=True,
            norm_eps=settings.number("rms_norm_eps", 1e-6),
            qkv_bias=bias,
            out_bias=bias,
        ),
    }
    kinds = layer_kinds(settings)
    return ModelConfig(
        head=NextToken(vocab=vocab, bias=False),
        layers=tuple(mixers[kind] for kind in kinds),
        width=width,
        tokens=(vocab,),
        mlp_ratio=hidden / width,
        tie=settings.flag("tie_word_embeddings", False),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        norm_place=" ".join("after" if kind == "full_attention" else "before" for kind in kinds),
        embedding_scale=1.0,
    )


def _delta_net(settings: Settings, width: int, heads: int) -> GatedDeltaNetConfig:
    count, values = (settings.whole(f"linear_num_{k}_heads", heads) for k in ("key", "value"))
    size = settings.whole("linear_key_head_dim", max(1, int(0.75 * width / count)))
    low = -1.0 if settings.flag("linear_allow_neg_eigval", True) else 0.0
    return GatedDeltaNetConfig(
        heads=values,
        key_heads=count,
        key_ratio=count * size / width,
        value_ratio=values * settings.whole("linear_value_head_dim", 2 * size) / width,
        window=settings.whole("linear_conv_kernel_dim", 4),
        eig_range=(low, 1.0),
        norm_eps=1e-5,
    )


def sources(settings: Settings) -> Sources:
    """By our names. A norm after the channel mixer is the second of the two, not the first."""
    theirs = "model.layers.{i}."
    norms = theirs + "post_attention_layernorm.weight", theirs + "post_feedforward_layernorm.weight"
    own: dict[str, Sources] = {
        "linear_attention": {
            "blocks.{i}.norm.weight": theirs + "input_layernorm.weight",
            "blocks.{i}.mlp.0.weight": norms[0],
            **_channel(theirs, 1),
            **_delta_net_sources(theirs + "linear_attn."),
        },
        "full_attention": {
            "blocks.{i}.norm.weight": norms[0],
            "blocks.{i}.mlp.1.weight": norms[1],
            **_channel(theirs, 0),
            **_attention_sources(theirs + "self_attn."),
        },
    }
    found = {"norm.weight": "model.norm.weight"}
    for layer, kind in enumerate(layer_kinds(settings)):
        found |= each([layer], own[kind])
    return found


def _channel(theirs: str, place: int) -> dict[str, str]:
    return {
        f"blocks.{{i}}.mlp.{place}.{our}.weight": f"{theirs}mlp.{their}_proj.weight"
        for our, their in (("gate", "gate"), ("value", "up"), ("out", "down"))
    }


def _delta_net_sources(theirs: str) -> Sources:
    ours = "blocks.{i}.mixer."
    return {
        ours + "inputs.qkv.weight": stacked(*(theirs + f"{name}_proj.weight" for name in "qkv")),
        ours + "inputs.conv.weight": Source(
            tuple(theirs + f"{name}_conv1d.weight" for name in "qkv"),
            lambda *parts: torch.cat(parts).squeeze(1),
        ),
        ours + "inputs.strength.weight": theirs + "b_proj.weight",
        ours + "decay.step.weight": theirs + "a_proj.weight",
        ours + "decay.log_rate": theirs + "A_log",
        ours + "decay.step_bias": theirs + "dt_bias",
        ours + "gate.weight": theirs + "g_proj.weight",
        ours + "norm.weight": theirs + "o_norm.weight",
        ours + "out.weight": theirs + "o_proj.weight",
    }


def _attention_sources(theirs: str) -> Sources:
    ours, maps = "blocks.{i}.mixer.", [theirs + f"{name}_proj." for name in "qkv"]
    return {
        ours + "qkv.weight": stacked(*(name + "weight" for name in maps)),
        ours + "qkv.bias": stacked(*(name + "bias" for name in maps)),
        ours + "q_norm.weight": theirs + "q_norm.weight",
        ours + "k_norm.weight": theirs + "k_norm.weight",
        ours + "out.weight": theirs + "o_proj.weight",
        ours + "out.bias": theirs + "o_proj.bias",
    }


OLMO_HYBRID = Format(
    config=config,
    sources=sources,
    embedding="model.embed_tokens.weight",
    renamed={
        "attention_layer_norm": "input_layernorm",
        "feedforward_layer_norm": "post_attention_layernorm",
    },
)
