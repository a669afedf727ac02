from itertools import islice

import pytest
import torch

from stepscan.generate import Sampling, decode
from stepscan.models import ModelConfig, NextToken, SequenceModel

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -4.0]])


def allowed(**options):
    return Sampling(**options).probabilities(LOGITS)[0].nonzero().flatten().tolist()


def test_filters_keep_what_they_say():
    p = LOGITS.softmax(-1)[0]  # 0.64 0.24 0.09 0.03 0.00
    assert allowed() == [0, 1, 2, 3, 4]
    assert allowed(top_k=2) == [0, 1]
    assert allowed(top_p=0.5) == [0]  # the first alone holds enough
    assert allowed(top_p=0.7) == [0, 1]
    assert allowed(top_p=0.9) == [0, 1, 2]
    assert allowed(min_p=0.1) == [0, 1, 2]
    assert allowed(top_k=3, min_p=0.3) == [0, 1]
    torch.testing.assert_close(Sampling(top_k=2).probabilities(LOGITS)[0, 0], p[0] / p[:2].sum())


def test_temperature_sharpens():
    assert Sampling(temperature=0.5).probabilities(LOGITS)[0, 0] > LOGITS.softmax(-1)[0, 0]
    rng = torch.Generator().manual_seed(0)
    assert Sampling(temperature=0).choose(LOGITS, rng).tolist() == [0]
    draws = Sampling().choose(LOGITS.expand(20_000, -1), rng)
    share = draws.bincount(minlength=5) / len(draws)
    torch.testing.assert_close(share, LOGITS.softmax(-1)[0], atol=0.015, rtol=0)


@pytest.mark.plain
@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"min_p": 2}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match=f"want {next(iter(wrong))} from"):
        Sampling(**wrong)


def test_decoding_equals_the_whole_sequence_and_repeats():
    config = ModelConfig(width=16, tokens=(9,), head=NextToken(vocab=9), layers="gla min_gru")
    model = SequenceModel(config).eval()
    prompt = torch.randint(9, (2, 7))

    def draw(seed, piece=1024, **options):
        rng = torch.Generator().manual_seed(seed)
        steps = decode(model, prompt, sampling=Sampling(**options), rng=rng, piece=piece)
        return torch.stack(list(islice(steps, 12)), 1)

    greedy = draw(0, temperature=0)
    logits, _ = model(torch.cat([prompt, greedy], 1))
    assert torch.equal(logits[:, 6:-1].argmax(-1), greedy)  # as if it had been there all along
    assert torch.equal(draw(0, piece=3, temperature=0), greedy)
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    with pytest.raises(ValueError, match="at least one token"):
        next(decode(model, prompt[:, :0], sampling=Sampling(), rng=torch.Generator()))
