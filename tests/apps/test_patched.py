"""Labelled sequences whose steps hold several samples."""

import numpy as np
import pytest
import torch
from made_up_sequences import waves

import stepscan as ss
from stepscan.apps.kinds import domain_of
from stepscan.data.base import DataError, DataOptions
from stepscan.data.batches import gather
from stepscan.data.labelled_dataset import labelled_dataset
from stepscan.data.sequences import from_arrays
from stepscan.models import SequenceModel

PATCH = 4


def domain_from(arrays, labels, **options):
    found = from_arrays(arrays, labels)
    return domain_of(labelled_dataset(found, DataOptions(**options), name="t"))


def model_of(domain):
    torch.manual_seed(0)
    return ss.Model(SequenceModel(domain.config("min_gru*2", 16)).eval(), domain.schema)


def test_steps_are_fewer_and_wider_and_say_so():
    arrays, labels = waves(60)
    plain = domain_from(arrays, labels).dataset
    folded = domain_from(arrays, labels, patch=PATCH).dataset
    assert folded.schema.reals == PATCH * plain.schema.reals
    for part, packed in folded.parts.items():
        assert packed.lengths.tolist() == [-(-n // PATCH) for n in plain.parts[part].lengths]
    assert f"of {PATCH} samples" in folded.said[0]
    packed, _ = folded.schema.encode(arrays[:1])
    samples, _ = plain.schema.encode(arrays[:1])
    assert packed.reals.view(-1, plain.schema.reals)[: len(arrays[0])].equal(samples.reals)


@pytest.mark.parametrize("cuts", [[1], [7, 8], [4, 8], list(range(1, 20))], ids=str)
def test_after_every_piece_a_stream_says_what_prediction_says_of_all_so_far(cuts):
    arrays, labels = waves(60)
    model, one = model_of(domain_from(arrays, labels, patch=PATCH)), arrays[3]
    pieces = np.split(one, cuts)
    said = list(model.predict_stream(pieces))
    assert len(said) == len(pieces)
    for answer, end in zip(said, [*cuts, len(one)], strict=True):
        wanted = model.predict(one[:end])
        assert [p.what for p in answer] == [p.what for p in wanted]
        assert [p.probability for p in answer] == pytest.approx(
            [p.probability for p in wanted], abs=1e-5
        )
    whole, state = model.stream(one)
    assert state.steps == len(whole) == len(one) // PATCH
    assert len(state.memory) == len(one) % PATCH


def test_simple_methods_see_samples_and_not_steps():
    arrays, labels = waves(120)
    arrays = [x[: len(x) // PATCH * PATCH] for x in arrays]
    plain, folded = (dict(domain_from(arrays, labels, patch=p).baselines()) for p in (1, PATCH))
    assert folded == {name: pytest.approx(scores) for name, scores in plain.items()}


def test_channels_are_disturbed_sample_by_sample():
    arrays, labels = waves(60)
    seen = {}
    for patch in (1, PATCH):
        domain = domain_from(arrays, labels, patch=patch, augment="scale=0.5")
        torch.manual_seed(0)
        model = SequenceModel(domain.config("min_gru*2", 16)).eval()
        model.register_forward_pre_hook(
            lambda _, args, patch=patch: seen.update({patch: args[0].reals})
        )
        packed = domain.dataset.parts["train"]
        batch = gather(packed, torch.arange(20 // patch)[None])
        torch.manual_seed(1)
        domain.objective(model, batch, None)
    assert seen[PATCH].view(1, 20, -1).allclose(seen[1])
    assert not seen[1].allclose(batch.reals.view(1, 20, -1))


def test_words_and_too_few_samples_are_told():
    with pytest.raises(DataError, match="patch joins samples of numbers"):
        domain_from([["a", "b"]] * 12, ["x", "y"] * 6, patch=2)
    with pytest.raises(DataError, match="want patch >= 1"):
        domain_from(*waves(60), patch=0)
