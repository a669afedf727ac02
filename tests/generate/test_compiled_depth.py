"""The compiled step of repeated stacks and of channel mixers."""

import dataclasses

import pytest
import torch
from laws import assert_near
from native import needs

from stepscan.generate import compile_decoder
from stepscan.models import ModelConfig, NextToken, SequenceModel

pytestmark = needs("decode_step")
BASE = ModelConfig(width=16, tokens=(7,), head=NextToken(vocab=7), layers="gla attention")


@pytest.mark.parametrize(
    "options",
    [
        {"loops": 3, "identity_bias": 1.0, "layer_scale": 0.5, "loop_embedding": True},
        {"loops": 3, "halt": "act[threshold=0.9]"},
        {"mlp": "gelu geglu"},
        {"mlp": "low_rank block_dense"},
        {"mlp": "block_shuffle"},
    ],
    ids=str,
)
@torch.no_grad()
def test_the_compiled_step_is_the_model(options):
    model = SequenceModel(dataclasses.replace(BASE, **options)).eval()
    tokens = torch.randint(7, (1, 9))
    decoder = compile_decoder(model, dtype="fp32")
    _, state = model(tokens[:, :4])
    decoder.load(state)
    steps = [decoder.step(int(token)).clone() for token in tokens[0, 4:]]
    assert_near(torch.cat(steps, 1), model(tokens)[0][:, 4:], what="logits")


def test_experts_are_chosen_by_numbers_so_the_model_itself_serves():
    model = SequenceModel(dataclasses.replace(BASE, mlp="moe")).eval()
    with pytest.raises(ValueError, match="depends on its numbers"):
        compile_decoder(model, dtype="fp32")
