import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from stepscan.train import checkpoint
from stepscan.train.checkpoint import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointVersionError,
)


def write(root, step, size=64):
    tensors = {"w": torch.full((size,), float(step)), "n": torch.tensor(float(step))}
    return checkpoint.save(root, step, tensors, {"of": step})


def whole(found):
    """What was saved together is there together."""
    said = {found.step, found.meta["of"], *found.tensors["w"].tolist(), found.tensors["n"].item()}
    return said == {found.step}


def in_child(work):
    """Run in a forked process that ends by exit code or by signal; no import of torch again."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(moment):
    """From now on, count what reaches the disk, and die by SIGKILL before the `moment`-th time."""
    count = [0]

    def counted(real):
        def call(*args, **options):
            count[0] += 1
            if count[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for place, name in [
        (os, "fsync"),
        (Path, "mkdir"),
        (Path, "rename"),
        (os, "unlink"),
        (os, "rmdir"),
        (checkpoint, "save_file"),
    ]:
        setattr(place, name, counted(getattr(place, name)))
    return count


@pytest.mark.parametrize("last", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_at_any_point_the_newest_checkpoint_is_whole(tmp_path, last):
    def run(root, moment):
        count = kill_at(moment)
        for step in range(1, last + 1):
            write(root, step)
        (root / f"points-{count[0]}").touch()

    root = tmp_path / "all"
    assert in_child(lambda: run(root, -1)) == 0
    (points,) = (int(p.name.removeprefix("points-")) for p in root.glob("points-*"))
    assert points > 6 * last

    steps = []
    for moment in range(1, points + 1):
        root = tmp_path / str(moment)
        assert in_child(lambda root=root, m=moment: run(root, m)) == -signal.SIGKILL
        found, problems = checkpoint.newest(root)
        assert not problems
        assert found is None or whole(found)
        steps.append(found.step if found else 0)
        checkpoint.clean(root)
        assert not list(root.glob(".*"))
        write(root, last + 1)  # and the run can go on
        assert checkpoint.newest(root)[0].step == last + 1
        shutil.rmtree(root)
    assert steps == sorted(steps)
    assert set(steps) == set(range(last + 1))


def test_files_are_synced_before_what_names_them(tmp_path, monkeypatch):
    did = []
    fsync, rename = os.fsync, Path.rename

    def spy_fsync(file):
        did.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    def spy_rename(path, target):
        did.append("rename")
        return rename(path, target)

    write(tmp_path, 1)
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    write(tmp_path, 2)
    stage = did[2]
    assert stage.startswith(".stage-")
    assert did == [checkpoint.SHARD, checkpoint.MANIFEST, stage, "rename", tmp_path.name]


def test_tensors_come_back_as_they_were(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "view": base.t(),
        "part": base[1],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "empty": torch.zeros(2, 0, 3),
        "complex": torch.complex(torch.ones(2), -torch.ones(2)),
        "learned": torch.ones(2, requires_grad=True),
    }
    meta = {"words": ["ü", 1.5, None], "nested": {"a": True}}
    found = checkpoint.load(checkpoint.save(tmp_path, 7, tensors, meta))
    assert (found.step, found.meta) == (7, meta)
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].equal(tensor.detach())


def test_the_newest_are_kept_and_none_is_overwritten(tmp_path):
    for step in (1, 3, 20, 100):
        write(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000000020", "step-000000000100"]
    with pytest.raises(FileExistsError, match="never overwritten"):
        write(tmp_path, 100)
    assert whole(checkpoint.newest(tmp_path)[0])


def damages():
    """Every way to damage a checkpoint that has to be noticed, by name."""
    shard, manifest = checkpoint.SHARD, checkpoint.MANIFEST

    def flip(name, at):
        def damage(path):
            content = bytearray((path / name).read_bytes())
            content[int(at * (len(content) - 1))] ^= 1
            (path / name).write_bytes(content)

        return damage

    def edit(path):
        content = json.loads((path / manifest).read_bytes())
        content["meta"]["of"] = 1_000
        (path / manifest).write_text(json.dumps(content))

    def link(path):
        (path / shard).rename(path.parent / "elsewhere")
        (path / shard).symlink_to(path.parent / "elsewhere")

    yield from (
        pytest.param(flip(name, at), name, id=f"{name} bit at {at}")
        for name in (shard, manifest)
        for at in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)
    )
    for name in (shard, manifest):
        cut = lambda path, name=name: os.truncate(path / name, 10)  # noqa: E731
        yield pytest.param(cut, name, id=f"{name} cut")
        yield pytest.param(lambda path, name=name: (path / name).unlink(), name, id=f"no {name}")
    yield pytest.param(lambda path: (path / "x.pt").touch(), "x.pt", id="foreign file")
    yield pytest.param(edit, manifest, id="edited")
    yield pytest.param(link, shard, id="link")
    yield pytest.param(
        lambda path: path.rename(path.with_name("step-000000000009")),
        "step-000000000009",
        id="name",
    )


@pytest.mark.parametrize(("damage", "named"), list(damages()))
def test_damage_is_noticed_and_an_older_one_serves(tmp_path, damage, named):
    write(tmp_path, 1)
    damage(write(tmp_path, 2))
    found, (problem,) = checkpoint.newest(tmp_path)
    assert found.step == 1
    assert whole(found)
    assert named in str(problem)

    damage(found.path) if "000009" not in named else shutil.rmtree(found.path)
    with pytest.raises(CheckpointCorruptError, match="step-"):
        checkpoint.newest(tmp_path)


def test_damaged_ones_are_set_aside_so_that_their_step_can_be_saved(tmp_path):
    write(tmp_path, 1)
    os.truncate(write(tmp_path, 2) / checkpoint.SHARD, 3)
    (moved,) = checkpoint.set_aside(tmp_path, newer_than=1)
    assert moved.name.startswith("corrupt-step-000000000002")
    assert whole(checkpoint.load(write(tmp_path, 2)))


def test_another_format_is_an_error_not_a_reason_to_fall_back(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    write(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(CheckpointVersionError, match=r"manifest.json: format 2; .* reads format 1"):
        checkpoint.newest(tmp_path)


def test_no_checkpoints_is_not_an_error(tmp_path):
    assert checkpoint.newest(tmp_path / "absent") == (None, [])
    assert not checkpoint.exist(tmp_path)
    (tmp_path / "step-1").mkdir()  # not one of ours
    assert checkpoint.newest(tmp_path) == (None, [])


def test_a_full_disk_is_found_out_before_writing(tmp_path, monkeypatch):
    write(tmp_path, 1)
    full = os.statvfs_result([4096, 4096, 100, 10, 10, 0, 0, 0, 0, 255])
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: pytest.fail("wrote"))
    with pytest.raises(OSError, match=r"needs .* bytes, 40,960 are free") as caught:
        write(tmp_path, 2)
    assert caught.value.errno == errno.ENOSPC
    assert checkpoint.newest(tmp_path)[0].step == 1


@pytest.mark.parametrize("name", ["save_file", "_sync", "_write_manifest"])
def test_a_write_that_fails_leaves_the_older_ones(tmp_path, monkeypatch, name):
    write(tmp_path, 1)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, name, fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000000001"]
    assert whole(checkpoint.newest(tmp_path)[0])


def test_a_real_write_error_is_an_oserror(tmp_path):
    """The file size limit of the process stands in for a full disk."""
    import resource  # noqa: PLC0415

    write(tmp_path, 1)

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write(tmp_path, 2, size=100_000)
        except OSError:
            os._exit(7)

    assert in_child(work) == 7
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000000001"]
    assert whole(checkpoint.newest(tmp_path)[0])


def test_errors_are_value_errors():
    assert issubclass(CheckpointError, ValueError)
