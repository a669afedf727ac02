"""Presets of recommendation against torch's own Transformer, and what a state carries of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stepscan.apps.interactions.presets import PRESETS, read_preset
from stepscan.models import ModelConfig, SequenceModel

V, T, WIDTH = 11, 12, 16


def built(layers, **changes):
    torch.manual_seed(0)
    model = SequenceModel(
        ModelConfig(tokens=(V,), width=WIDTH, **(read_preset(layers, V) | changes))
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.double().eval()


def peer(model, *, first):
    """torch's encoder with the weights of the blocks."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, 2, 4 * WIDTH, 0.5, "gelu", 1e-12, batch_first=True, norm_first=first
    )
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    for block, theirs in zip(model.blocks, encoder.layers, strict=True):
        norm, mlp = (block.mlp[0], block.mlp[1]) if first else (block.mlp[1], block.mlp[0])
        pairs = (
            (theirs.self_attn.in_proj_weight, block.mixer.qkv.weight),
            (theirs.self_attn.in_proj_bias, block.mixer.qkv.bias),
            (theirs.self_attn.out_proj.weight, block.mixer.out.weight),
            (theirs.self_attn.out_proj.bias, block.mixer.out.bias),
            (theirs.linear1.weight, mlp.inner.weight),
            (theirs.linear1.bias, mlp.inner.bias),
            (theirs.linear2.weight, mlp.out.weight),
            (theirs.linear2.bias, mlp.out.bias),
            (theirs.norm1.weight, block.norm.weight),
            (theirs.norm1.bias, block.norm.bias),
            (theirs.norm2.weight, norm.weight),
            (theirs.norm2.bias, norm.bias),
        )
        for to, ours in pairs:
            to.data.copy_(ours.data)
    return encoder


@torch.no_grad()
@pytest.mark.parametrize("place", ["post", "before"])
@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_a_preset_is_the_published_transformer(name, place):
    model = built(f'{name}[length={T}, place="{place}"]')
    items = torch.randint(1, V, (3, T))
    x = model.embed.tables[0](items) + model.positions.table.weight
    x = F.layer_norm(x, (WIDTH,), model.entry[0].weight, model.entry[0].bias, 1e-12)
    later = torch.ones(T, T, dtype=torch.bool).triu(1) if name == "sasrec" else None
    x = peer(model, first=place == "before")(x, mask=later)
    if place == "before":
        x = F.layer_norm(x, (WIDTH,), model.norm.weight, model.norm.bias, 1e-12)
    if name == "bert4rec":
        x = F.gelu(x @ model.head.project.weight.T + model.head.project.bias)
    want = x @ model.embed.tables[0].weight.T
    want = want if name == "sasrec" else want + model.head.map.bias
    torch.testing.assert_close(model(items)[0], want, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_items_beyond_the_positions_share_the_last_one():
    model = built("sasrec[length=4]")
    items = torch.randint(1, V, (2, 9))
    whole, state = model(items)
    assert state[-1].tolist() == [9, 9]
    model.positions.table.weight[:3] = torch.randn(3, WIDTH)
    assert not torch.allclose(model(items)[0][:, :3], whole[:, :3])
    table = model.positions.table.weight
    longer = built("sasrec[length=9]")
    table = torch.cat([table, table[3:].expand(5, -1)])
    longer.load_state_dict(model.state_dict() | {"positions.table.weight": table})
    torch.testing.assert_close(longer(items)[0], model(items)[0])


def test_dropout_is_where_it_is_said_to_be_and_only_in_training():
    model = built("sasrec[length=12, dropout=0.5]")
    items = torch.randint(1, V, (2, T))
    assert torch.equal(model(items)[0], model(items)[0])
    model.train()
    torch.manual_seed(0)
    first = model(items)[0].x
    assert not torch.equal(first, model(items)[0].x)
    for dropped in (m for m in model.modules() if isinstance(m, nn.Dropout)):
        dropped.p = 0.0
    assert not torch.equal(model(items)[0].x, model(items)[0].x), "weights of the attention"
    for block in model.blocks:
        object.__setattr__(block.mixer.config, "dropout", 0.0)
    assert torch.equal(model(items)[0].x, model(items)[0].x)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("sasrec[lenght=9]", "unknown option of sasrec 'lenght'. Did you mean 'length'"),
        ("sasrec bert4rec", "a preset stands alone"),
        ("sasrec*2", "a preset stands alone; depth=N"),
        ("sasrec[vocab=3]", "unknown option of sasrec 'vocab'"),
    ],
)
def test_presets_that_cannot_be_read(layers, message):
    with pytest.raises(ValueError, match=message):
        read_preset(layers, V)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": -1}, "positions from 0"),
        ({"embedding_dropout": 1.0}, "embedding_dropout < 1"),
        ({"initial_std": 0.0}, "initial_std above 0"),
        ({"layers": "attention[dropout=1.0]"}, "0 <= dropout < 1"),
        ({"layers": "attention[window=4, causal=False]"}, "want window None with causal=False"),
    ],
)
def test_configs_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        SequenceModel(ModelConfig(tokens=(V,), **(read_preset("sasrec", V) | change)))


def test_every_preset_is_a_config_that_survives_its_file():
    for name in PRESETS:
        config = ModelConfig(tokens=(V,), width=WIDTH, **read_preset(name, V))
        assert ModelConfig.from_dict(config.to_dict()) == config
