import attention_cases
import delta_cases
import linear_cases
import published
import pytest
import torch
from published import difference, draw, gradients, reference, run, unnoticed

if not (published.installed("fla") and published.installed("transformers")):
    pytest.skip("wants fla-core and transformers: run `make oracles`", allow_module_level=True)

CASES = [*linear_cases.CASES, *delta_cases.CASES, *attention_cases.CASES]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs_and_states(case, dtype, record_property):
    found = 0.0
    for T in case.lengths:
        inputs = draw(case, T, dtype)
        theirs = run(reference(case, dtype), inputs)
        found = max(found, difference(run(case.ours, inputs), theirs))
    record_property("difference", (case.name, str(dtype), found))


@every_case
def test_gradients(case, record_property):
    if not case.differentiable:
        pytest.skip("their function writes over what its gradients need")
    inputs = draw(case, case.lengths[-2], torch.float64)
    theirs = gradients(reference(case, torch.float64), inputs)
    found = difference(gradients(case.ours, inputs), theirs)
    record_property("difference", (case.name, "gradients", found))


@every_case
def test_every_mutation_is_found_out(case):
    assert unnoticed(case, case.lengths[-1]) == []
