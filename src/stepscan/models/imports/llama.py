"""`llama`: Llama 1 to 3.2 (arXiv:2302.13971, arXiv:2407.21783): grouped attention and SwiGLU."""

from stepscan.mixers.attention import AttentionConfig
from stepscan.models.config import ModelConfig
from stepscan.models.heads import NextToken
from stepscan.models.imports.base import Format, Settings, Sources, each, stacked


def config(settings: Settings) -> ModelConfig:
    """Our config."""
    settings.only("hidden_act", "silu", "swish")
    width, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
    hidden, vocab = settings.whole("intermediate_size"), settings.whole("vocab_size")
    if hidden % 8:
        raise settings.error(f"want intermediate_size a multiple of 8, got {hidden}")
    if not settings.given("head_dim") and width % heads:
        raise settings.error(f"num_attention_heads {heads} must divide hidden_size {width}")
    base, stretch = rotary(settings)
    bias = settings.flag("attention_bias", False)
    mixer = AttentionConfig(
        heads=heads,
        key_value_heads=settings.whole("num_key_value_heads", heads),
        head_size=settings.whole("head_dim", max(1, width // heads)),
        rotary_base=base,
        rotary_stretch=stretch,
        qkv_bias=bias,
        out_bias=bias,
    )
    return ModelConfig(
        head=NextToken(vocab=vocab, bias=False),
        layers=(mixer,) * settings.whole("num_hidden_layers"),
        width=width,
        tokens=(vocab,),
        mlp="swiglu[bias=True]" if settings.flag("mlp_bias", False) else "swiglu",
        mlp_ratio=hidden / width,
        tie=settings.flag("tie_word_embeddings", False),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        embedding_scale=1.0,
    )


def rotary(settings: Settings) -> tuple[float, tuple[float, ...] | None]:
    """Base and stretch of the rotations, in the old way of writing them and in the new one."""
    new = settings.given("rope_parameters")
    part = settings.part("rope_parameters" if new else "rope_scaling")
    base = (part if part.given("rope_theta") else settings).number("rope_theta", 10000.0)
    key = "rope_type" if part.given("rope_type") else "type"
    part.only(key, "default", "linear", "llama3")
    part.only("partial_rotary_factor", 1.0, 1)
    kind = part.values.get(key, "default")
    if kind == "default":
        return base, None
    factor = part.number("factor")
    if kind == "linear":  # every rotation is slower than a turn in one token
        return base, (factor, 1.0, 2.0, 1.0)
    low, high = part.number("low_freq_factor"), part.number("high_freq_factor")
    length = part.number("original_max_position_embeddings")
    return base, (factor, low, high, length)


def sources(settings: Settings) -> Sources:
    """By our names."""
    theirs, attention = "model.layers.{i}.", "model.layers.{i}.self_attn."
    maps = [attention + f"{name}_proj" for name in "qkv"]
    return {"norm.weight": "model.norm.weight"} | each(
        range(settings.whole("num_hidden_layers")),
        {
            "blocks.{i}.norm.weight": theirs + "input_layernorm.weight",
            "blocks.{i}.mixer.qkv.weight": stacked(*(name + ".weight" for name in maps)),
            "blocks.{i}.mixer.qkv.bias": stacked(*(name + ".bias" for name in maps)),
            "blocks.{i}.mixer.out.weight": attention + "o_proj.weight",
            "blocks.{i}.mixer.out.bias": attention + "o_proj.bias",
            "blocks.{i}.mlp.0.weight": theirs + "post_attention_layernorm.weight",
        }
        | {
            f"blocks.{{i}}.mlp.1.{ours}.{kind}": theirs + f"mlp.{name}_proj.{kind}"
            for ours, name in {"gate": "gate", "value": "up", "out": "down"}.items()
            for kind in ("weight", "bias")
        },
    )


LLAMA = Format(
    config=config,
    sources=sources,
    embedding="model.embed_tokens.weight",
    unused=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)
