"""State tracking and structure: every option's oracle, and what the definitions say."""

import itertools

import pytest
import torch

from stepscan.tasks import TASKS
from stepscan.tasks.memory_span import draw_heads, multi_head, single_head
from stepscan.tasks.trees import codes
from stepscan.tasks.word_problem import GROUPS, elements, table

OPTIONS = [
    ("parity", {"begin": False, "length": 7}),
    ("modular_sum", {"modulus": 7, "begin": False}),
    *(("word_problem", {"group": group}) for group in GROUPS),
    ("flip_flop", {"ignore": 0.0}),
    ("flip_flop", {"joined": True, "ignore": 0.6}),
    *(("tomita", {"number": number}) for number in range(1, 8)),
    ("dyck", {"ask": "depth"}),
    ("dyck", {"types": 1, "depth": 1}),
    ("binary_successor", {"balanced": True}),
    ("tree_traversal", {"order": "preorder"}),
    ("tree_traversal", {"nodes": 1}),
    ("listops", {"every": False}),
    ("listops", {"depth": 1, "length": 3}),
    ("listops", {"depth": 8, "length": 60, "nested": 0.9}),
    ("n_parity", {"span": 10}),
    ("delayed_match_to_sample", {"span": 2}),
    ("sorting", {"count": 5, "numbers": 5}),
]
every_option = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)


def draw(task, n=64, seed=0):
    return task.draw(n, torch.Generator().manual_seed(seed))


def by_position(task, n=4000):
    """Score of the best constant of each step."""
    batch = draw(task, n, seed=5)
    votes = [((batch.target == a) & batch.asked).sum(0) for a in range(task.answers)]
    return (torch.stack(votes).amax(0).sum() / batch.asked.sum()).item()


@every_option
def test_oracle_and_chance_of_every_option(name, options):
    task = TASKS[name](**options)
    batch = draw(task)
    assert task.score(task.solve(batch.input), batch) == 1
    assert by_position(task) == pytest.approx(task.chance, abs=0.03)


@pytest.mark.parametrize(
    ("group", "order", "commutes"),
    [("S3", 6, False), ("S5", 120, False), ("A4", 12, False), ("A5", 60, False), ("D5", 10, False)],
)
def test_groups_are_groups(group, order, commutes):
    by = table(group)
    every = torch.arange(order)
    assert by.shape == (order, order)
    assert all(sorted(line) == every.tolist() for line in (*by.tolist(), *by.T.tolist()))
    a, b, c = torch.randint(order, (3, 200))
    assert torch.equal(by[by[a, b], c], by[a, by[b, c]])
    assert torch.equal(by, by.T) is commutes
    assert tuple(range(len(elements(group)[0]))) in elements(group)


def test_a_walk_through_a_language_is_often_inside_and_often_outside():
    for number in range(1, 8):
        batch = draw(TASKS["tomita"](number=number, length=80), 500)
        inside = batch.target[batch.asked].double().mean()
        assert 0.15 < inside < 0.75, number


def test_brackets_nest_and_stay_within_the_depth():
    task = TASKS["dyck"](types=3, depth=4, ask="depth")
    batch = draw(task, 300)
    step = torch.where(batch.input < task.types, 1, -1).cumsum(1)
    assert torch.equal(step, batch.target)
    assert (step.min(), step.max()) == (0, 4)
    assert batch.input.unique().tolist() == list(range(6))


def test_every_shape_of_a_tree_is_as_likely():
    """Catalan(4) = 14 shapes of 4 nodes; chi-square with 13 degrees of freedom."""
    node = codes(7000, 4, torch.Generator().manual_seed(0))
    _, count = (node.long() * 2 ** torch.arange(9)).sum(1).unique(return_counts=True)
    assert len(count) == 14
    assert ((count - 500.0).square() / 500).sum() < 34.5  # the 99.9 % point


def test_steps_of_reduction_end_in_the_traversal():
    reduction, traversal = TASKS["tree_reduction"](nodes=6), TASKS["tree_traversal"](nodes=6)
    trees = draw(TASKS["tree_traversal"](nodes=6, labels=reduction.labels), 20).input[:, :13]
    for row in trees.tolist():
        now = row
        for _ in range(6):
            now = reduction.rewrite(now)
        dot = reduction.labels
        assert all(token >= dot for token in now)
        said = [token - dot - 1 for token in now if token > dot]
        code = [traversal.labels if token == dot else token for token in row]
        assert said == traversal.rewrite(code)


def test_deep_recursions_are_rare_unless_balanced():
    for balanced, want in ((False, 2.0**-9), (True, 8 / 17)):
        task = TASKS["binary_successor"](balanced=balanced)
        deep = (task.strata(draw(task, 20_000).input) > 8).double().mean()
        assert deep == pytest.approx(want, abs=0.01)


def test_strata_are_the_depths_of_the_recursion():
    successor, traversal = TASKS["binary_successor"](length=4), TASKS["tree_traversal"](nodes=3)
    for digits in itertools.product((0, 1), repeat=4):
        depth = successor.strata(torch.tensor([digits])).item()
        assert successor.rewrite(list(digits))[:depth] == [0] * depth
        assert successor.rewrite(list(digits))[depth] == 1
    chain, bush = [1, 2, 3, 16, 16, 16, 16], [1, 2, 16, 16, 3, 16, 16]
    assert traversal.strata(torch.tensor([chain, bush])).tolist() == [3, 2]


def test_flip_flops_hold_a_bit_for_long():
    batch = draw(TASKS["flip_flop"](length=256), 200)
    gap = (batch.input[:, ::2] == 4).float().mean()
    assert gap == pytest.approx(0.8, abs=0.02)


def test_lists_follow_the_published_example():
    """[MAX 2 9 [MIN 4 7 ] 0 ] is 9, [MED 1 5 8 9 ] is 6, [SM 8 9 9 ] is 6."""
    opening = {"MIN": 10, "MAX": 11, "MED": 12, "SM": 13}
    for text, want in (
        ("MAX 2 9 MIN 4 7 ] 0 ]", [4, 9]),
        ("MED 1 5 8 9 ]", [6]),
        ("SM 8 9 9 ]", [6]),
    ):
        word = [opening.get(t, 14 if t == "]" else t) for t in text.split()]
        word = torch.tensor([[int(token) for token in word]])
        assert TASKS["listops"]().solve(word)[word == 14].tolist() == want


@pytest.mark.parametrize("name", ["n_parity", "delayed_match_to_sample"])
def test_curricula_ask_one_reading_about_several_spans(name):
    task = TASKS[name]()
    single, multi = single_head(task, 5), multi_head(task, 5)
    assert [[t.span for t in stage] for stage in single] == [[2], [3], [4], [5]]
    assert [[t.span for t in stage] for stage in multi] == [[2], [2, 3], [2, 3, 4], [2, 3, 4, 5]]
    drawn = draw_heads(multi[-1], 8, torch.Generator().manual_seed(3))
    for head, each in enumerate(multi[-1]):
        alone = each.draw(8, torch.Generator().manual_seed(3))
        assert torch.equal(drawn.input, alone.input)
        assert torch.equal(drawn.target[..., head], alone.target)
        assert torch.equal(drawn.asked[..., head], alone.asked)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("parity", {"length": 0}, "parity: want length of 1 or more, got 0"),
        ("modular_sum", {"modulus": 1}, "want modulus of 2 or more"),
        ("word_problem", {"group": "S33"}, "Did you mean 'S3'"),
        ("flip_flop", {"length": 5}, "want an even length"),
        ("tomita", {"number": 8}, "want a number from 1 to 7, got 8"),
        ("dyck", {"ask": "closng"}, "Did you mean 'closing'"),
        ("dyck", {"depth": 0}, "depth=0"),
        ("binary_successor", {"length": 0}, "want 1 digit or more"),
        ("tree_traversal", {"order": "postorder"}, "order of tree_traversal 'postorder'"),
        ("tree_reduction", {"nodes": 0}, "nodes=0"),
        ("listops", {"length": 2}, "length of 3 or more"),
        ("n_parity", {"span": 1}, "want 2 <= span <= length, got 1"),
        ("sorting", {"count": 9, "numbers": 8}, "want 1 <= count <= numbers, got 9 and 8"),
    ],
)
def test_errors_say_what_to_fix(name, options, message):
    with pytest.raises(ValueError, match=message):
        TASKS[name](**options)
