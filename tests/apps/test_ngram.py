from collections import Counter

import numpy as np
import pytest

from stepscan.apps.baselines.ngram import NGram

VOCAB = 4


def naive(train, test, order):
    """Kneser-Ney from dictionaries and the definition, one token at a time."""
    grams = {
        k: [tuple(train[i : i + k]) for i in range(len(train) - k + 1)] for k in range(1, order + 1)
    }

    def count(k):
        if k == order:
            return Counter(grams[k])
        return Counter(g[1:] for g in set(grams[k + 1]))

    counts = {k: count(k) for k in grams}

    def p(w, h):
        k = len(h) + 1
        lower = 1 / VOCAB if k == 1 else p(w, h[1:])
        c = {g: n for g, n in counts[k].items() if g[:-1] == h}
        if not c:
            return lower
        ones = sum(n == 1 for n in counts[k].values())
        twos = sum(n == 2 for n in counts[k].values())
        d = ones / (ones + 2 * twos) if ones else 0
        return (max(c.get((*h, w), 0) - d, 0) + d * len(c) * lower) / sum(c.values())

    return [p(w, tuple(test[max(0, i - order + 1) : i])) for i, w in enumerate(test)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_definition(order):
    rng = np.random.default_rng(0)
    train = rng.choice(VOCAB, 60, p=[0.6, 0.2, 0.15, 0.05])
    test = rng.choice(VOCAB, 40)
    got = np.exp(NGram(train, VOCAB, order).log_probabilities(test))
    np.testing.assert_allclose(got, naive(train.tolist(), test.tolist(), order), rtol=1e-12)


def test_probabilities_sum_to_one_after_any_context():
    rng = np.random.default_rng(1)
    model = NGram(rng.choice(VOCAB, 200), VOCAB, 3)
    for context in ([0, 1], [3, 3], [2]):
        ends = [np.array([*context, w]) for w in range(VOCAB)]
        total = sum(np.exp(model.log_probabilities(end)[-1]) for end in ends)
        assert total == pytest.approx(1)


def test_too_little_text_is_said():
    with pytest.raises(ValueError, match="more than 5 tokens, got 3"):
        NGram(np.arange(3), VOCAB)
