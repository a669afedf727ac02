"""`qwen3_next`: Gated DeltaNet, every few layers gated attention, and SwiGLU or a mixture of them.

Norms are kept as their distance from 1, but for the one in Gated DeltaNet.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stepscan.mixers import MixerConfig
from stepscan.mixers.attention import AttentionConfig
from stepscan.mixers.gated_delta_net import GatedDeltaNetConfig
from stepscan.models.config import ModelConfig
from stepscan.models.heads import NextToken
from stepscan.models.imports.base import Format, Settings, Source, Sources, each, from_one, window
from stepscan.models.imports.rotary import plain_rotary

DRAFTING = r"mtp\..*"
"""What predicts a second token, to be checked by the model."""


def config(settings: Settings) -> ModelConfig:
    """Our config."""
    settings.only("hidden_act", "silu", "swish")
    settings.only("attention_bias", False)
    width, vocab = settings.whole("hidden_size"), settings.whole("vocab_size")
    heads, eps = settings.whole("num_attention_heads"), settings.number("rms_norm_eps", 1e-6)
    keys = settings.whole("linear_num_key_heads"), settings.whole("linear_key_head_dim")
    values = settings.whole("linear_num_value_heads"), settings.whole("linear_value_head_dim")
    mixers: dict[str, MixerConfig] = {
        "linear_attention": GatedDeltaNetConfig(
            heads=values[0],
            key_heads=keys[0],
            key_ratio=keys[0] * keys[1] / width,
            value_ratio=values[0] * values[1] / width,
            window=settings.whole("linear_conv_kernel_dim", 4),
            norm_eps=eps,
        ),
        "full_attention": AttentionConfig(
            heads=heads,
            key_value_heads=settings.whole("num_key_value_heads", heads),
            head_size=settings.whole("head_dim", 256),
            **plain_rotary(settings, 0.25),
            qk_norm=True,
            norm_eps=eps,
            output_gate=True,
        ),
    }
    mlp, hidden = _mlp(settings)
    return ModelConfig(
        head=NextToken(vocab=vocab, bias=False),
        layers=tuple(mixers[kind] for kind in layer_kinds(settings)),
        width=width,
        tokens=(vocab,),
        mlp=mlp,
        mlp_ratio=hidden / width,
        tie=settings.flag("tie_word_embeddings", False),
        norm_eps=eps,
        embedding_scale=1.0,
    )


def layer_kinds(settings: Settings) -> list[str]:
    """The kind of each layer."""
    layers, every = settings.whole("num_hidden_layers"), "full_attention_interval"
    if not settings.given("layer_types"):
        every_so_many = settings.whole(every, 4)
        attends = [(i + 1) % every_so_many == 0 for i in range(layers)]
        return ["full_attention" if yes else "linear_attention" for yes in attends]
    kinds = settings.values["layer_types"]
    known = {"full_attention", "linear_attention"}
    if not isinstance(kinds, list) or len(kinds) != layers or set(kinds) - known:
        raise settings.error(f"want layer_types {layers} of {sorted(known)}, got {kinds!r:.60}")
    return kinds


def _sparse(settings: Settings) -> bool:
    """Whether all layers have experts; some with and some without are of two hidden widths."""
    layers = range(settings.whole("num_hidden_layers"))
    dense = settings.values.get("mlp_only_layers") or []
    step = settings.whole("decoder_sparse_step", 1)
    if not settings.values.get("num_experts"):
        return False
    sparse = {i not in dense and (i + 1) % step == 0 for i in layers}
    if len(sparse) > 1:
        raise settings.error("mlp_only_layers and decoder_sparse_step: want all layers alike")
    return sparse.pop()


def _mlp(settings: Settings) -> tuple[str, int]:
    """The channel mixer and its hidden width."""
    if not _sparse(settings):
        name, hidden = "swiglu", settings.whole("intermediate_size")
    else:
        hidden = settings.whole("moe_intermediate_size")
        if settings.whole("shared_expert_intermediate_size") != hidden:
            raise settings.error(
                f"want shared_expert_intermediate_size as moe_intermediate_size, {hidden}"
            )
        count, top = settings.whole("num_experts"), settings.whole("num_experts_per_tok")
        normalize = settings.flag("norm_topk_prob", True)
        name = f"moe[experts={count}, top={top}, normalize={normalize}, shared=True]"
    if hidden % 8:
        raise settings.error(f"want feed-forward layers of a multiple of 8 channels, got {hidden}")
    return name, hidden


def sources(settings: Settings) -> Sources:
    """By our names."""
    return layers(settings, _delta_net)


def layers(settings: Settings, delta_net: Callable[[Settings, str], Sources]) -> Sources:
    """All layers, those of Gated DeltaNet by `delta_net`."""
    theirs = "model.layers.{i}."
    common: Sources = {
        "blocks.{i}.norm.weight": from_one(theirs + "input_layernorm.weight"),
        "blocks.{i}.mlp.0.weight": from_one(theirs + "post_attention_layernorm.weight"),
        **_channel(settings, theirs + "mlp."),
    }
    own = {
        "linear_attention": delta_net(settings, theirs + "linear_attn."),
        "full_attention": _attention(settings, theirs + "self_attn."),
    }
    found = {"norm.weight": from_one("model.norm.weight")}
    for layer, kind in enumerate(layer_kinds(settings)):
        found |= each([layer], {**common, **own[kind]})
    return found


def _channel(settings: Settings, theirs: str) -> Sources:
    pairs = (("gate", "gate"), ("value", "up"), ("out", "down"))
    ours = "blocks.{i}.mlp.1."
    if not _sparse(settings):
        return {f"{ours}{our}.weight": f"{theirs}{their}_proj.weight" for our, their in pairs}
    shared = {
        f"{ours}shared.{our}.weight": f"{theirs}shared_expert.{their}_proj.weight"
        for our, their in pairs
    }
    count = range(settings.whole("num_experts"))
    experts = {
        f"{ours}{our}": Source(
            tuple(f"{theirs}experts.{expert}.{their}_proj.weight" for expert in count),
            lambda *each: torch.stack(each),
        )
        for our, their in pairs
    }
    return {
        ours + "router.weight": theirs + "gate.weight",
        ours + "shared_gate.weight": theirs + "shared_expert_gate.weight",
        **shared,
        **experts,
    }


def _delta_net(settings: Settings, theirs: str) -> Sources:
    """The maps of q, k, v and the gate z lie together for each key head; so do those of b and a."""
    heads, size = settings.whole("linear_num_key_heads"), settings.whole("linear_key_head_dim")
    several = settings.whole("linear_num_value_heads") // heads
    values = several * settings.whole("linear_value_head_dim")

    def rows(x: Tensor, *sizes: int) -> tuple[Tensor, ...]:
        parts = x.unflatten(0, (heads, -1)).split(sizes, 1)
        return tuple(part.flatten(0, 1) for part in parts)

    maps, gates = (theirs + "in_proj_qkvz.weight",), (theirs + "in_proj_ba.weight",)
    sizes = size, size, values, values
    ours = "blocks.{i}.mixer."
    return {
        ours + "inputs.qkv.weight": Source(maps, lambda x: torch.cat(rows(x, *sizes)[:3])),
        ours + "gate.weight": Source(maps, lambda x: rows(x, *sizes)[3]),
        ours + "inputs.conv.weight": window(theirs + "conv1d.weight"),
        ours + "inputs.strength.weight": Source(gates, lambda x: rows(x, several, several)[0]),
        ours + "decay.step.weight": Source(gates, lambda x: rows(x, several, several)[1]),
        ours + "decay.log_rate": theirs + "A_log",
        ours + "decay.step_bias": theirs + "dt_bias",
        ours + "norm.weight": theirs + "norm.weight",
        ours + "out.weight": theirs + "out_proj.weight",
    }


def _attention(settings: Settings, theirs: str) -> Sources:
    """Each head's query and its gate lie together."""
    size = settings.whole("head_dim", 256)

    def half(x: Tensor, which: int) -> Tensor:
        return x.unflatten(0, (-1, 2, size))[:, which].flatten(0, 1)

    maps = tuple(theirs + f"{name}_proj.weight" for name in "qkv")
    ours = "blocks.{i}.mixer."
    return {
        ours + "qkv.weight": Source(maps, lambda q, k, v: torch.cat([half(q, 0), k, v])),
        ours + "gate.weight": Source(maps[:1], lambda q: half(q, 1)),
        ours + "q_norm.weight": from_one(theirs + "q_norm.weight"),
        ours + "k_norm.weight": from_one(theirs + "k_norm.weight"),
        ours + "out.weight": theirs + "o_proj.weight",
    }


QWEN3_NEXT = Format(
    config=config,
    sources=sources,
    embedding="model.embed_tokens.weight",
    unused=DRAFTING,
)
