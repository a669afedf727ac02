import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from stepscan.data.base import Packed
from stepscan.train import checkpoint, log, loop, snapshot
from stepscan.train.evaluate import evaluate
from stepscan.train.lock import RunLockedError
from stepscan.train.loop import DivergedError, Trainer
from stepscan.train.stopping import stop_requests

VARIANTS = [
    pytest.param({}, "min_gru", id="windows"),
    pytest.param({"carry": True}, "min_gru", id="carried"),
    pytest.param({"carry": True}, "attention min_gru", id="carried attention"),
    pytest.param({"precision": "bfloat16"}, "gla", id="bfloat16"),
    pytest.param({"tokens": 12 * 24}, "min_gru", id="tokens"),
]


def metrics(directory):
    return log.read(directory / log.METRICS)


def saved(directory):
    return checkpoint.newest(directory / loop.CHECKPOINTS)[0]


# ---------------------------------------------------------------------------- training


@pytest.mark.parametrize("changes", [{}, {"carry": True}, {"precision": "bfloat16"}], ids=str)
def test_it_learns(build, packed, plan, changes):
    model = build()
    before = evaluate(model, packed, rows=2, length=32)["token"]
    Trainer(model, packed, plan(steps=60, learning_rate=0.05, **changes)).run()
    assert evaluate(model, packed, rows=2, length=32)["token"] < 0.6 * before


def test_slices_of_any_size_are_one_run(build, packed, plan, weights):
    whole, sliced = build(), build()
    Trainer(whole, packed, plan()).run()
    trainer = Trainer(sliced.eval(), packed, plan())  # as somebody may have left it
    trainer.advance(steps=0)
    trainer.advance(seconds=0.0)
    assert trainer.step == 0
    trainer.advance(seconds=1e-9)
    assert trainer.step == 1
    while not trainer.done:
        trainer.advance(steps=3)
    assert trainer.step == 12
    assert trainer.tokens == 12 * 3 * 8
    assert trainer.progress == 1
    trainer.advance()
    assert trainer.step == 12
    assert weights(sliced).equal(weights(whole))


def test_trainers_that_take_turns_do_not_disturb_each_other(build, packed, plan, weights):
    alone = [build(), build("lstm")]
    for model in alone:
        Trainer(model, packed, plan()).run()
    together = [build(), build("lstm")]
    trainers = [Trainer(model, packed, plan()) for model in together]
    before = torch.get_rng_state()
    while not all(trainer.done for trainer in trainers):
        for trainer in trainers:
            trainer.advance(steps=1)
    assert torch.get_rng_state().equal(before)
    for a, b in zip(alone, together, strict=True):
        assert weights(a).equal(weights(b))


def test_dropout_follows_the_seed(build, packed, plan, weights):
    models = [build(), build()]
    for model, seed in zip(models, (0, 1), strict=True):
        trainer = Trainer(model, packed, plan(seed=seed))
        with trainer._random_numbers_of(3):
            model.drawn = torch.rand(4)
        with trainer._random_numbers_of(4):
            assert not torch.rand(4).equal(model.drawn)
        trainer.run()
    assert not models[0].drawn.equal(models[1].drawn)
    assert not weights(models[0]).equal(weights(models[1]))


def test_the_carried_state_has_no_graph_and_does_not_grow(build, packed, plan):
    trainer = Trainer(build("attention min_gru"), packed, plan(carry=True))
    trainer.run()
    attention, recurrent = trainer._state
    assert attention.keys.shape[1] == trainer.config.length
    assert recurrent.hidden.any()
    assert not recurrent.hidden.requires_grad


def test_carrying_matters(build, packed, plan, weights, monkeypatch):
    carried, fresh = build(), build()
    Trainer(carried, packed, plan(carry=True)).run()
    trainer = Trainer(fresh, packed, plan(carry=True))
    while not trainer.done:
        trainer.advance(steps=1)
        trainer._state = None
    assert not weights(carried).equal(weights(fresh))


def test_records_and_evaluations_come_at_intervals(build, packed, plan):
    records = []
    scores = iter([{"mase": 4.0}, {"mase": 3.0}, {"mase": 2.0}, {"mase": 1.0}])
    trainer = Trainer(
        build(), packed, plan(reports=6), evaluate=lambda: next(scores), log=records.append
    )
    trainer.run()
    judged = [(r["step"], r["scores"]["mase"]) for r in records if r["event"] == "evaluation"]
    assert judged == [(3, 4.0), (6, 3.0), (9, 2.0), (12, 1.0)]
    steps = [r for r in records if r["event"] == "step"]
    assert [r["step"] for r in steps] == [1, 2, 4, 6, 8, 10, 12]
    assert all(r["loss"]["token"] > 0 and r["gradient_norm"] > 0 for r in steps)
    assert steps[-1]["seconds_left"] == 0
    assert [r["tokens"] for r in steps] == [r["step"] * 24 for r in steps]
    json.dumps(records, allow_nan=False)


def test_a_budget_of_minutes_counts_training_only(build, packed, plan):
    slept = []

    def judge():
        slept.append(0.05)
        time.sleep(0.05)
        return {}

    trainer = Trainer(build(), packed, plan(minutes=0.15 / 60, evaluations=5), evaluate=judge)
    begin = time.perf_counter()
    trainer.run()
    assert trainer.done
    assert trainer.seconds >= 0.15
    assert trainer.seconds < time.perf_counter() - begin - sum(slept)
    assert trainer.seconds_left == 0


def test_a_batch_that_asks_nothing_moves_nothing(build, packed, plan, weights):
    nothing = torch.full((len(packed),), -1)
    silent = Packed(packed.starts, tokens=packed.tokens, targets={"token": nothing})
    model = build()
    before = weights(model)
    trainer = Trainer(model, silent, plan())
    trainer.run()
    assert weights(model).equal(before)
    assert trainer.skipped == 0


# ---------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(("changes", "layers"), VARIANTS)
def test_a_resumed_run_is_bit_for_bit_the_same(
    build, packed, plan, weights, tmp_path, changes, layers
):
    whole = build(layers)
    want = Trainer(whole, packed, plan(**changes))
    want.run()
    with Trainer(build(layers), packed, plan(**changes), directory=tmp_path) as trainer:
        assert not trainer.resume()
        trainer.advance(steps=5)
    for steps in (4, None):
        resumed = build(layers, seed=1)
        with Trainer(resumed, packed, plan(**changes), directory=tmp_path) as trainer:
            assert trainer.resume()
            trainer.advance(steps=steps)
            trainer.save()
    assert trainer.step == 12
    assert weights(resumed).equal(weights(whole))
    assert trainer.tokens == want.tokens
    a, b = (snapshot.take(t.model, t._optimizer, t._state) for t in (trainer, want))
    assert a.keys() == b.keys()
    assert any(name.startswith("state/") for name in a) == bool(changes.get("carry"))
    assert all(tensor.equal(b[name]) for name, tensor in a.items())


def test_what_is_left_out_of_a_checkpoint_would_be_missed(build, packed, plan, weights, tmp_path):
    """The test above can fail: each part of the run matters for its end."""
    whole = build()
    Trainer(whole, packed, plan(carry=True)).run()
    with Trainer(build(), packed, plan(carry=True), directory=tmp_path) as trainer:
        trainer.advance(steps=5)

    def forget(trainer, part):
        match part:
            case "optimizer":
                trainer._optimizer.state.clear()
            case "state":
                trainer._state = None
            case "step":
                trainer.step -= 1

    for part in ("nothing", "optimizer", "state", "step"):
        resumed = build()
        with Trainer(resumed, packed, plan(carry=True), directory=tmp_path) as trainer:
            trainer.resume()
            trainer._root = None  # keep the checkpoint as it is
            forget(trainer, part)
            trainer.run()
        assert weights(resumed).equal(weights(whole)) == (part == "nothing"), part


def kill_and_resume(start, delays):
    """Start the process, kill it after each delay, then let it finish; how many kills hit."""
    hits = 0
    for delay in [*delays, None]:
        child = start()
        if delay is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in {0, -signal.SIGKILL}
        hits += code != 0
    return hits


def test_killed_at_random_and_resumed_it_ends_the_same(build, packed, plan, weights, tmp_path):
    config = plan(steps=60, carry=True)
    whole = build()
    Trainer(whole, packed, config).run()

    def work():
        seed = int(checkpoint.exist(tmp_path / loop.CHECKPOINTS))
        with Trainer(build(seed=seed), packed, config, directory=tmp_path) as trainer:
            trainer.resume()
            trainer.run()

    def start():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        return pid

    dice = random.Random(0)
    assert kill_and_resume(start, [dice.uniform(0.03, 0.3) for _ in range(5)]) > 0
    last = saved(tmp_path)
    assert last.step == 60
    with Trainer(build(seed=1), packed, config, directory=tmp_path) as trainer:
        trainer.resume()
        assert weights(trainer.model).equal(weights(whole))
    steps = [r["step"] for r in metrics(tmp_path) if r["event"] == "step"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 60


PROGRAM = """
    import sys, torch
    from pathlib import Path
    from stepscan.data.base import Packed
    from stepscan.models import ModelConfig, NextToken, SequenceModel
    from stepscan.train.config import TrainConfig
    from stepscan.train.loop import Trainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens = torch.arange(500) ** 2 % 11
    packed = Packed(torch.arange(500) % 50 == 0, tokens=tokens[:, None],
                    targets={"token": tokens.roll(-1)})
    config = ModelConfig(head=NextToken(vocab=11), layers="min_gru attention", width=16,
                         tokens=(11,), dropout=0.1)
    plan = TrainConfig(steps=150, rows=3, length=16, carry=True, save_seconds=0.0)
    with Trainer(SequenceModel(config), packed, plan, directory=Path(sys.argv[1])) as trainer:
        trainer.resume()
        Path(sys.argv[1], "ready").touch()
        trainer.run()
"""


@pytest.mark.slow
def test_a_process_killed_at_random_ends_the_same(tmp_path):
    """As above, with processes that share nothing but the folder."""
    program = textwrap.dedent(PROGRAM)

    def run_here(name):
        pid = os.fork()
        if pid == 0:
            sys.argv[1:] = [str(tmp_path / name)]
            try:
                exec(program, {})
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    run_here("whole")
    ready = tmp_path / "killed" / "ready"
    for delay in (0.1, 0.4):
        ready.unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-c", program, tmp_path / "killed"])
        while child.poll() is None and not ready.exists():
            time.sleep(0.001)
        time.sleep(delay)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert 0 < saved(tmp_path / "killed").step < 150
    run_here("killed")
    a, b = (saved(tmp_path / name) for name in ("whole", "killed"))
    assert a.step == b.step == 150
    assert a.tensors.keys() == b.tensors.keys()
    assert all(t.equal(b.tensors[name]) for name, t in a.tensors.items())


def test_a_damaged_checkpoint_costs_its_steps_not_the_run(build, packed, plan, weights, tmp_path):
    whole = build()
    Trainer(whole, packed, plan()).run()
    with Trainer(build(), packed, plan(), directory=tmp_path) as trainer:
        trainer.advance(steps=5)
    os.truncate(saved(tmp_path).path / checkpoint.SHARD, 100)
    resumed = build(seed=1)
    with Trainer(resumed, packed, plan(), directory=tmp_path) as trainer:
        with pytest.warns(RuntimeWarning, match=r"set aside a damaged checkpoint: .*safetensors"):
            trainer.resume()
        assert trainer.step == 4
        trainer.run()
    assert weights(resumed).equal(weights(whole))
    assert len(list((tmp_path / loop.CHECKPOINTS).glob("corrupt-*"))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate=0.01, not 0.5"),
        ({"rows": 4}, "rows=3, not 4"),
        ("model", "another config"),
        ("data", "other data"),
    ],
    ids=str,
)
def test_another_run_is_not_gone_on_with(build, packed, plan, tmp_path, change, message):
    with Trainer(build(), packed, plan(), directory=tmp_path) as trainer:
        trainer.advance(steps=2)
    model = build("gru") if change == "model" else build()
    if change == "data":
        packed.tokens[7] += 1
    config = plan(**change) if isinstance(change, dict) else plan()
    with (
        Trainer(model, packed, config, directory=tmp_path) as trainer,
        pytest.raises(ValueError, match=message),
    ):
        trainer.resume()


def test_the_budget_may_be_raised(build, packed, plan, tmp_path):
    with Trainer(build(), packed, plan(), directory=tmp_path) as trainer:
        trainer.run()
    with Trainer(build(), packed, plan(steps=20), directory=tmp_path) as trainer:
        assert trainer.resume()
        assert not trainer.done
        trainer.run()
    assert saved(tmp_path).step == 20


def test_other_threads_are_warned_about(build, packed, plan, tmp_path, monkeypatch):
    with Trainer(build(), packed, plan(), directory=tmp_path) as trainer:
        trainer.advance(steps=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with (
        Trainer(build(), packed, plan(), directory=tmp_path) as trainer,
        pytest.warns(RuntimeWarning, match=r"threads was 1, is 7: .* last bits"),
    ):
        trainer.resume()


def test_a_folder_with_a_run_is_not_begun_again(build, packed, plan, tmp_path):
    with Trainer(build(), packed, plan(), directory=tmp_path) as trainer:
        trainer.run()
    with (
        Trainer(build(), packed, plan(), directory=tmp_path) as trainer,
        pytest.raises(ValueError, match=r"holds .* run: resume it, or choose another folder"),
    ):
        trainer.run()


def test_two_runs_in_one_folder(build, packed, plan, tmp_path):
    with Trainer(build(), packed, plan(), directory=tmp_path) as trainer:
        with pytest.raises(RunLockedError, match="trains here"):
            Trainer(build(), packed, plan(), directory=tmp_path)
        trainer.run()
    assert saved(tmp_path).step == 12


# ---------------------------------------------------------------------------- trouble


def spoil(monkeypatch, trainer, steps, where):
    """Make the loss or one gradient not finite at these steps."""
    if where == "loss":
        real = loop.loss

        def loss(*args):
            result = real(*args)
            return result._replace(mean=result.mean * math.nan) if trainer.step in steps else result

        monkeypatch.setattr(loop, "loss", loss)
    else:
        weight = trainer.model.embed.tables[0].weight
        weight.register_hook(lambda g: g * math.inf if trainer.step in steps else None)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("carry", [False, True])
def test_a_step_that_is_not_finite_is_skipped_and_told(
    build, packed, plan, weights, monkeypatch, where, carry
):
    records = []
    trainer = Trainer(build(), packed, plan(carry=carry), log=records.append)
    spoil(monkeypatch, trainer, {3, 4, 8}, where)
    trainer.advance(steps=3)
    before = weights(trainer.model)
    trainer.advance(steps=2)
    assert weights(trainer.model).equal(before)
    assert trainer._state is None
    trainer.run()
    assert not weights(trainer.model).equal(before)
    assert weights(trainer.model).isfinite().all()
    told = [(r["step"], r["in_a_row"]) for r in records if r["event"] == "skipped"]
    assert told == [(4, 1), (5, 2), (9, 1)]
    assert trainer.skipped == 3
    json.dumps(records, allow_nan=False)


def test_five_in_a_row_end_the_run_with_the_last_good_checkpoint(
    build, packed, plan, monkeypatch, weights, tmp_path
):
    with Trainer(build(), packed, plan(), directory=tmp_path) as trainer:
        spoil(monkeypatch, trainer, set(range(4, 99)), "gradient")
        with pytest.raises(DivergedError, match=r"step 9: .* 5 steps in a row .* lower learning"):
            trainer.run()
        want = weights(trainer.model)
    assert saved(tmp_path).step == 4
    again = build(seed=1)
    with Trainer(again, packed, plan(), directory=tmp_path) as trainer:
        trainer.resume()
        assert weights(again).equal(want)
        trainer.run()
    assert saved(tmp_path).step == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(build, packed, plan, weights, tmp_path, number):
    whole = build()
    Trainer(whole, packed, plan()).run()
    before = signal.getsignal(number)

    def interrupt(record):
        if record["step"] == 5 and record["event"] == "step":
            os.kill(os.getpid(), number)

    model = build()
    with Trainer(model, packed, plan(save_seconds=1e9), directory=tmp_path, log=interrupt) as t:
        assert t.run() == number
        assert t.step == saved(tmp_path).step == 5
    assert signal.getsignal(number) is before
    assert metrics(tmp_path)[-1]["event"] == "stopped"
    with Trainer(model, packed, plan(), directory=tmp_path) as trainer:
        trainer.resume()
        assert trainer.run() is None
    assert weights(model).equal(weights(whole))


def test_the_second_signal_is_immediate(tmp_path):
    pid = os.fork()
    if pid == 0:
        try:
            with stop_requests() as stop:
                (tmp_path / "ready").touch()
                while not stop:
                    time.sleep(0.01)
                (tmp_path / "first").touch()
                time.sleep(60)
        finally:
            os._exit(1)
    for name in ("ready", "first"):
        while not (tmp_path / name).exists():
            time.sleep(0.01)
        os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_a_thread_trains_without_signals(build, packed, plan):
    import threading  # noqa: PLC0415

    trainer = Trainer(build(), packed, plan())
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert trainer.done


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_stops_the_run_with_the_older_checkpoint_intact(
    build, packed, plan, tmp_path, monkeypatch
):
    with Trainer(build(), packed, plan(), directory=tmp_path) as trainer:
        trainer.advance(steps=3)
        monkeypatch.setattr(checkpoint, "save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            trainer.run()
    assert saved(tmp_path).step == 3


def test_or_it_is_a_warning_if_so_wanted(build, packed, plan, tmp_path, monkeypatch):
    with Trainer(build(), packed, plan(on_save_error="warn"), directory=tmp_path) as trainer:
        trainer.advance(steps=3)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", full_disk)
            with pytest.warns(RuntimeWarning, match="No space left"):
                trainer.advance(steps=5)
        assert saved(tmp_path).step == 3
        trainer.run()
    assert saved(tmp_path).step == 12
    assert sum(r["event"] == "warning" for r in metrics(tmp_path)) == 5


def test_no_folder_leaves_nothing(build, packed, plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(build(), packed, plan())
    trainer.run()
    assert not trainer.resume()
    assert not list(Path().iterdir())
