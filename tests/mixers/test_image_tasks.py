"""Small images: digits by bidirectional gated linear attention, arrows by pLSTM (both slow)."""

import pytest
import torch
from arrow_pointing import draw
from torch import nn
from torch.nn import functional as F

from stepscan.mixers import MIXERS
from stepscan.models import Classify, ModelConfig, SequenceModel


class VisionTransformer(nn.Module):
    """Patches, learned places, pre-norm encoder layers, and the answer of every patch."""

    def __init__(self, patch, side, classes, width, layers, heads=4):
        super().__init__()
        self.embed = nn.Linear(patch, width)
        self.place = nn.Parameter(0.02 * torch.randn(width, side, side))
        sizes = {"d_model": width, "nhead": heads, "dim_feedforward": 4 * width, "dropout": 0.0}
        layer = nn.TransformerEncoderLayer(**sizes, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x):
        side = round(x.shape[1] ** 0.5)
        place = F.interpolate(self.place[None], (side, side), mode="bilinear")[0]
        return self.head(self.body(self.embed(x) + place.flatten(1).T)), None


def model_of(layers, patch, classes, width, ratio):
    head = Classify(classes=classes)
    return SequenceModel(
        ModelConfig(width=width, reals=patch, head=head, layers=layers, mlp_ratio=ratio)
    )


def train(model, batch, *, steps, pool, seed=0, rate=3e-3, decay=0.01):
    rng = torch.Generator().manual_seed(seed + 100)
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for _ in range(steps):
        x, y = batch(rng)
        loss = F.cross_entropy(pool(model(x)[0]), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, x, y, pool):
    found = torch.cat([pool(model(part)[0]).argmax(-1) for part in x.split(128)])
    return (found == y).double().mean().item()


def size(model):
    return sum(p.numel() for p in model.parameters())


# Digits ------------------------------------------------------------------------------------------


def digits():
    """1,797 images of 8 x 8, doubled, as patches of 2 x 2 pixels; three of four are to learn."""
    datasets = pytest.importorskip("sklearn.datasets", reason="pip install scikit-learn")
    images, labels = datasets.load_digits(return_X_y=True)
    images = torch.tensor(images).float().view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, (16, 16), mode="bilinear")
    patches = F.unfold(images, 2, stride=2).mT  # [n 64 4]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(labels)
    cut = 3 * len(labels) // 4
    return (patches[order[:cut]], labels[order[:cut]]), (patches[order[cut:]], labels[order[cut:]])


@pytest.mark.slow
def test_digits_with_fewer_parameters_than_a_vision_transformer():
    learn, test = digits()
    torch.manual_seed(0)
    layers = (MIXERS["bi_gla"](rows=8, columns=8, heads=2),) * 2
    vig = model_of(layers, 4, 10, 32, 2.0)
    vit = VisionTransformer(4, 8, 10, 32, 2)
    assert size(vig) < size(vit)

    def batch(rng):
        chosen = torch.randint(len(learn[1]), (64,), generator=rng)
        return learn[0][chosen], learn[1][chosen]

    mean = lambda y: y.mean(1)  # noqa: E731
    found = [
        accuracy(train(m, batch, steps=600, pool=mean, rate=6e-3, decay=0.05), *test, mean)
        for m in (vig, vit)
    ]
    assert found[0] >= 0.97, (found, size(vig), size(vit))


# Arrows ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.xfail(
    strict=False,
    reason="pLSTM 0.93 at 32 and 0.74 at 64 pixels, the transformer 0.95 and 0.91 (seed 0)",
)
def test_arrow_pointing_carries_over_to_images_of_twice_the_side():
    """Trained on 32 x 32 pixels, 4 x 4 patches; judged on 64 x 64."""
    largest = lambda y: y.amax(1)  # noqa: E731
    found = {}

    def plstm(side):
        layers = (
            MIXERS["plstm"](rows=side, columns=side, mode=mode, gate_bias=0.0) for mode in "PD"
        )
        return model_of(tuple(layers), 64, 2, 32, 2.0)

    def transformer(_):
        return VisionTransformer(64, 4, 2, 32, 2)

    for name, build in (("plstm", plstm), ("transformer", transformer)):
        torch.manual_seed(0)
        model = train(build(4), lambda rng: draw(64, 32, rng), steps=1500, pool=largest, rate=4e-3)
        large = build(8)
        large.load_state_dict(model.state_dict())
        for side, judged in ((32, model.eval()), (64, large.eval())):
            x, y = draw(1024, side, torch.Generator().manual_seed(7))
            found[name, side] = accuracy(judged, x, y, largest)
    assert found["plstm", 64] >= 0.9, found
    assert found["transformer", 64] <= found["plstm", 64] - 0.15, found
