"""Small checkpoints of every format that is imported, made by the library that defines it."""

import json
import os

import pytest
import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers", reason="wants transformers, of the extra dev")

VOCAB, WIDTH = 37, 32
TINY = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "eos_token_id": None}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
MAMBA2 = {"num_heads": 8, "head_dim": 8, "state_size": 8, "chunk_size": 16}
XLSTM = {"num_heads": 4, "chunk_size": 16, "autocast_kernel_dtype": "float32"}
QWEN = {
    **HEADS, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 6, "linear_value_head_dim": 4, "full_attention_interval": 2,
}  # fmt: skip
SPARSE = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 5}
CASES = {  # the names of the classes begin with the first word
    "llama": ("Llama", HEADS),
    "llama 3.1": ("Llama", {**HEADS, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama with all": (
        "Llama",
        {**HEADS, "rope_parameters": LINEAR, "attention_bias": True, "mlp_bias": True,
         "head_dim": 12},
    ),
    "mamba": ("Mamba", {"state_size": 4}),
    "mamba with all": (
        "Mamba",
        {"state_size": 5, "expand": 3, "conv_kernel": 3, "time_step_rank": 7, "use_bias": True,
         "use_conv_bias": False, "tie_word_embeddings": False},
    ),
    "mamba2": ("Mamba2", {**MAMBA2, "n_groups": 2}),
    "mamba2 with all": (
        "Mamba2",
        {**MAMBA2, "n_groups": 1, "time_step_limit": (0.01, 0.3), "conv_kernel": 2,
         "use_bias": True, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-2},
    ),
    "falcon_mamba": ("FalconMamba", {"state_size": 4, "mixer_rms_eps": 1e-2}),
    "recurrent_gemma": ("RecurrentGemma", {**HEADS, "num_hidden_layers": 4}),
    "recurrent_gemma with all": (
        "RecurrentGemma",
        {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 80,
         "lru_width": 48, "attention_window_size": 7, "conv1d_width": 3, "logits_soft_cap": 3.0,
         "block_types": ["attention", "recurrent"], "attention_bias": True,
         "rope_parameters": {"rope_theta": 50.0, "partial_rotary_factor": 1.0},
         "rms_norm_eps": 1e-2, "tie_word_embeddings": False},
    ),
    "rwkv": ("Rwkv", {}),
    "rwkv with all": (
        "Rwkv",
        {"attention_hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
         "rescale_every": 2},
    ),
    "xlstm": ("xLSTM", XLSTM),
    "xlstm with all": (
        "xLSTM",
        {**XLSTM, "num_heads": 2, "qk_dim_factor": 0.75, "v_dim_factor": 1.5, "norm_eps": 1e-3,
         "gate_soft_cap": 2.0, "output_logit_soft_cap": 1.5,
         "ffn_proj_factor": 1.6, "ffn_round_up_to_multiple_of": 8},
    ),
    "olmo_hybrid": ("OlmoHybrid", {**HEADS, "num_hidden_layers": 4, "pad_token_id": None}),
    "olmo_hybrid with all": (
        "OlmoHybrid",
        {**HEADS, "layer_types": ["full_attention", "linear_attention"], "attention_bias": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": None}, "rms_norm_eps": 1e-2,
         "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 5,
         "linear_value_head_dim": 3, "linear_conv_kernel_dim": 3, "tie_word_embeddings": True,
         "linear_allow_neg_eigval": False, "pad_token_id": None},
    ),
    "qwen3_5": (
        "Qwen3_5",
        {"text_config": {**TINY, **QWEN, "rope_parameters": {"mrope_section": [1, 0, 0]}},
         "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16,
                           "out_hidden_size": WIDTH}},
    ),
    "qwen3_5_text": ("Qwen3_5Text", QWEN),
    "qwen3_next": ("Qwen3Next", {**QWEN, **SPARSE, "num_experts_per_tok": 2}),
    "qwen3_next without experts": (
        "Qwen3Next",
        {**QWEN, "num_experts": 0, "linear_conv_kernel_dim": 3, "rms_norm_eps": 1e-2,
         "layer_types": ["full_attention", "linear_attention"], "tie_word_embeddings": True,
         "rope_parameters": {"rope_theta": 50.0, "partial_rotary_factor": 0.5}},
    ),
    "qwen3_next with plain weights of experts": (
        "Qwen3Next",
        {**QWEN, **SPARSE, "num_experts_per_tok": 3, "norm_topk_prob": False},
    ),
}  # fmt: skip


def make(case, folder, **more):
    """A small model whose every weight matters, saved as its library saves it."""
    name, options = CASES[case]
    torch.manual_seed(3)
    nested = "text_config" in options
    config = getattr(transformers, f"{name}Config")(**options if nested else TINY | options)
    head = "ForConditionalGeneration" if nested else "ForCausalLM"
    model = getattr(transformers, name.removesuffix("Text") + head)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder, **more)
    return model


def edit(folder, change):
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def config(**changes):
    return lambda folder: edit(folder, lambda data: data.update(changes))
