"""`xlstm`: xLSTM 7B (arXiv:2503.13427): mLSTM with capped gates, and SwiGLU."""

from stepscan.mixers.mlstm_large import MLSTMLargeConfig
from stepscan.models.config import ModelConfig
from stepscan.models.heads import NextToken
from stepscan.models.imports.base import Format, Settings, Sources, each, stacked


def config(settings: Settings) -> ModelConfig:
    """Our config."""
    settings.only("use_bias", False)
    settings.only("weight_mode", "single")
    settings.only("add_out_norm", True)
    settings.only("tie_word_embeddings", False)
    settings.only("eps", 1e-6)
    width, vocab = _width(settings), settings.whole("vocab_size")
    multiple = settings.whole("ffn_round_up_to_multiple_of", 64)
    hidden = settings.number("ffn_proj_factor", 2.667) * width
    hidden = multiple * int((hidden + multiple - 1) // multiple)
    if hidden % 8:
        raise settings.error(f"want feed-forward layers of a multiple of 8 channels, got {hidden}")
    eps = settings.number("norm_eps", 1e-6)
    mixer = MLSTMLargeConfig(
        heads=settings.whole("num_heads", 8),
        key_ratio=int(width * settings.number("qk_dim_factor", 0.5)) / width,
        value_ratio=int(width * settings.number("v_dim_factor", 1.0)) / width,
        gate_cap=settings.number("gate_soft_cap", 15.0),
        norm_eps=eps,
    )
    cap = settings.number("output_logit_soft_cap", 30.0)
    return ModelConfig(
        head=NextToken(vocab=vocab, bias=False, soft_cap=cap),
        layers=(mixer,) * _layers(settings),
        width=width,
        tokens=(vocab,),
        mlp_ratio=hidden / width,
        tie=False,
        norm_eps=eps,
        embedding_scale=1.0,
    )


def _width(settings: Settings) -> int:
    return settings.whole("hidden_size" if settings.given("hidden_size") else "embedding_dim")


def _layers(settings: Settings) -> int:
    key = "num_hidden_layers" if settings.given("num_hidden_layers") else "num_blocks"
    return settings.whole(key)


def sources(settings: Settings) -> Sources:
    """By our names."""
    theirs, mixer = "backbone.blocks.{i}.", "backbone.blocks.{i}.mlstm_layer."
    maps = [mixer + name for name in ("q", "k", "v", "ogate_preact")]
    gates = [mixer + name for name in ("igate_preact", "fgate_preact")]
    return {"norm.weight": "backbone.out_norm.weight"} | each(
        range(_layers(settings)),
        {
            "blocks.{i}.norm.weight": theirs + "norm_mlstm.weight",
            "blocks.{i}.mixer.inputs.weight": stacked(*(name + ".weight" for name in maps)),
            "blocks.{i}.mixer.gates.weight": stacked(*(name + ".weight" for name in gates)),
            "blocks.{i}.mixer.gates.bias": stacked(*(name + ".bias" for name in gates)),
            "blocks.{i}.mixer.norm": mixer + "multihead_norm.weight",
            "blocks.{i}.mixer.out.weight": mixer + "out_proj.weight",
            "blocks.{i}.mlp.0.weight": theirs + "norm_ffn.weight",
            "blocks.{i}.mlp.1.gate.weight": theirs + "ffn.proj_up_gate.weight",
            "blocks.{i}.mlp.1.value.weight": theirs + "ffn.proj_up.weight",
            "blocks.{i}.mlp.1.out.weight": theirs + "ffn.proj_down.weight",
        },
    )


XLSTM = Format(config=config, sources=sources, embedding="backbone.embeddings.weight")
