"""Configs of checkpoints alone, without their library: what they become, and what is refused."""

import pytest
import torch

from stepscan.models import SequenceModel
from stepscan.models.folder import tensors_of
from stepscan.models.imports import FORMATS, CheckpointError, Settings

SIZES = {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GEMMA = {**SIZES, "intermediate_size": 48}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
    "linear_value_head_dim": 4,
}  # fmt: skip
QWEN = {**SIZES, **DELTA, "intermediate_size": 48, "head_dim": 8}
SPARSE = {
    "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
WHOLE = {  # as little as says what the model is
    "olmo_hybrid": {**SIZES, "intermediate_size": 48},
    "qwen3_5_text": QWEN,
    "qwen3_next": QWEN,
    "recurrent_gemma": GEMMA,
    "rwkv": SIZES,
    "xlstm": SIZES,
}


def read(kind, **changes):
    return FORMATS[kind].config(Settings(WHOLE[kind] | changes, "config.json"))


@pytest.mark.parametrize("kind", WHOLE)
def test_every_tensor_has_a_source(kind):
    config = read(kind)
    sources = FORMATS[kind].all_sources(Settings(WHOLE[kind], "config.json"))
    with torch.device("meta"):
        assert tensors_of(SequenceModel(config)).keys() <= sources.keys()
    assert not [name for source in sources.values() for name in source.names if "{" in name]


def test_layers_come_in_the_order_of_the_config():
    kinds = ["full_attention", "linear_attention"]
    names = [mixer.name for mixer in read("qwen3_next", layer_types=kinds).mixers]
    assert names == ["attention", "gated_delta_net"]
    five = read("recurrent_gemma", num_hidden_layers=5).mixers
    assert [mixer.name for mixer in five] == ["rg_lru", "rg_lru", "attention", "rg_lru", "rg_lru"]
    assert read("olmo_hybrid", layer_types=kinds).norm_places == ("after", "before")
    assert [mixer.name for mixer in read("rwkv").mixers] == ["rwkv4", "rwkv4_channel"] * 2


@pytest.mark.parametrize(
    ("changes", "rotary", "base", "part"),
    [
        ({}, True, 1e4, 0.25),
        ({"rope_theta": 50, "partial_rotary_factor": 0.5}, True, 50.0, 0.5),
        ({"rope_theta": 50, "rope_parameters": {"rope_theta": 70}}, True, 70.0, 0.25),
        ({"rope_parameters": {"rope_theta": None}}, False, 1e4, 1.0),
    ],
)
def test_rotations_are_read_where_they_are_written(changes, rotary, base, part):
    mixer = read("qwen3_next", layer_types=["full_attention"] * 2, **changes).mixers[0]
    assert (mixer.rotary, mixer.rotary_base, mixer.rotary_part) == (rotary, base, part)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("recurrent_gemma", {"hidden_activation": "silu"}, "'silu' is not imported, only 'gelu_p"),
        ("recurrent_gemma", {"intermediate_size": 56}, "and 16 the intermediate_size, twice 28"),
        ("recurrent_gemma", {"lru_width": 30}, "must divide lru_width 30"),
        ("recurrent_gemma", {"block_types": ["ssm"]}, "want block_types of recurrent and att"),
        ("recurrent_gemma", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' is not"),
        ("rwkv", {"tie_word_embeddings": True}, "tie_word_embeddings True is not imported"),
        ("rwkv", {"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon 0.001 is not imported"),
        ("xlstm", {"weight_mode": "fused"}, "weight_mode 'fused' is not imported, only 'single'"),
        ("xlstm", {"use_bias": True}, "use_bias True is not imported"),
        ("xlstm", {"ffn_round_up_to_multiple_of": 3}, "of a multiple of 8 channels, got 87"),
        ("qwen3_next", {"layer_types": ["full_attention"]}, "want layer_types 2 of"),
        ("qwen3_next", {**SPARSE, "mlp_only_layers": [1]}, "want all layers alike"),
        (
            "qwen3_next",
            {**SPARSE, "shared_expert_intermediate_size": 24},
            "want shared_expert_intermediate_size as moe_intermediate_size, 16",
        ),
        ("qwen3_next", {"rope_scaling": {"type": "yarn"}}, "rope_scaling .* is not imported"),
        ("olmo_hybrid", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not imported"),
        ("olmo_hybrid", {"intermediate_size": 50}, "and 8 the intermediate_size 50"),
    ],
)
def test_what_would_be_another_model_is_refused(kind, changes, message):
    with pytest.raises(
        CheckpointError, match=rf"config.json.*: {message}|config.json: .*{message}"
    ):
        read(kind, **changes)
