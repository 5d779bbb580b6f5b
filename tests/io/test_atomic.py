"""A save that is interrupted, at whatever point, leaves the old artefact or none."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from lrjax import io
from lrjax.errors import ArtefactError
from lrjax.io import atomic

OLD = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "x": np.ones(4, np.float32)}
NEW = {"w": np.arange(8, dtype=np.float32).reshape(2, 4)}


def is_(params, expected):
    return params.keys() == expected.keys() and all(
        np.array_equal(params[k], expected[k]) for k in expected
    )


def test_nothing_is_overwritten_unasked(tmp_path):
    io.save(tmp_path / "a", OLD)
    with pytest.raises(ArtefactError, match="there already"):
        io.save(tmp_path / "a", NEW)
    assert is_(io.load(tmp_path / "a").params, OLD)
    io.save(tmp_path / "a", NEW, overwrite=True)
    assert is_(io.load(tmp_path / "a").params, NEW)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_only_artefacts_are_overwritten(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("ten years")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(precious)
    for name in ("precious", "file", "link"):
        with pytest.raises(ArtefactError, match="did not write"):
            io.save(tmp_path / name, NEW, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "ten years"
    (tmp_path / "empty").mkdir()
    io.save(tmp_path / "empty", NEW, overwrite=True)
    assert is_(io.load(tmp_path / "empty").params, NEW)


def test_a_damaged_artefact_may_be_overwritten(tmp_path):
    io.save(tmp_path / "a", OLD)
    os.truncate(tmp_path / "a" / "weights.safetensors", 10)
    io.save(tmp_path / "a", NEW, overwrite=True)
    assert is_(io.load(tmp_path / "a").params, NEW)


def test_an_exception_inside_leaves_no_trace(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic.new_folder(tmp_path / "a") as draft:
        (draft / "half").write_text("...")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_of_ours_and_leaves_the_old_one(tmp_path, monkeypatch):
    io.save(tmp_path / "a", OLD)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtefactError, match="No space left on device"):
        io.save(tmp_path / "a", NEW, overwrite=True)
    monkeypatch.undo()
    assert is_(io.load(tmp_path / "a").params, OLD)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_without_an_exchange_the_swap_is_two_renames(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "exchange", lambda a, b: False)
    io.save(tmp_path / "a", OLD)
    io.save(tmp_path / "a", NEW, overwrite=True)
    assert is_(io.load(tmp_path / "a").params, NEW)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_another_process_writes_is_left_alone(tmp_path):
    with atomic.new_folder(tmp_path / "a") as mine:
        (mine / "part").write_text("mine")
        io.save(tmp_path / "a", NEW)
        assert (mine / "part").exists()
        with pytest.raises(ArtefactError):
            io.save(tmp_path / "a", NEW)
        (tmp_path / "a").rename(tmp_path / "b")
    assert (tmp_path / "a" / "part").read_text() == "mine"


KILLER = """
import os, sys
import numpy as np
from lrjax import io
from lrjax.io import atomic

# Every step through which the disk changes; the process dies before the one of the given number.
# (The child of a fork touches no JAX array: its threads did not come along.)
def deadly(module, name, countdown):
    real = getattr(module, name)
    def step(*args, **kwargs):
        countdown[0] -= 1
        if countdown[0] < 0:
            os._exit(9)
        return real(*args, **kwargs)
    setattr(module, name, step)

target, mode = sys.argv[1:]
old = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "x": np.ones(4, np.float32)}
new = {"w": np.arange(8, dtype=np.float32).reshape(2, 4)}
if mode == "renames":
    atomic.exchange = lambda a, b: False
for n in range(100):
    folder = f"{target}/{n}/a"
    os.makedirs(os.path.dirname(folder))
    if mode != "fresh":
        io.save(folder, old)
    pid = os.fork()
    if pid == 0:
        countdown = [n]
        deadly(os, "fsync", countdown)
        deadly(os, "rename", countdown)
        deadly(atomic, "exchange", countdown)
        deadly(atomic.shutil, "rmtree", countdown)
        deadly(io.manifest, "build", countdown)
        deadly(io.hf, "write_file", countdown)
        io.save(folder, new, overwrite=mode != "fresh")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(n, status, flush=True)
    if status == 0:
        break
    assert status == 9, status
"""


@pytest.mark.parametrize("mode", ["fresh", "overwrite", "renames"])
def test_killed_before_any_step_the_old_one_or_none_stands(tmp_path, mode):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLER), str(tmp_path), mode],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    runs = [line.split() for line in done.stdout.splitlines()]
    assert len(runs) > 8
    assert runs[-1][1] == "0"
    seen = set()
    for n, status in runs:
        folder = tmp_path / n / "a"
        try:
            found = io.load(folder).params
        except ArtefactError as cause:
            # Nothing at all under the name, never a part of something.
            assert not folder.exists()
            assert mode == "fresh" or (mode == "renames" and "rename it back" in str(cause))
            seen.add("none")
        else:
            assert is_(found, NEW) or (is_(found, OLD) and mode != "fresh")
            seen.add("new" if is_(found, NEW) else "old")
        # The next save works as if nothing had happened, and clears what was left behind.
        io.save(folder, NEW, overwrite=True)
        assert is_(io.load(folder).params, NEW)
        assert [p.name for p in folder.parent.iterdir()] == ["a"], (n, status)
    expected = {"fresh": {"none", "new"}, "overwrite": {"old", "new"}}
    assert seen == expected.get(mode, {"old", "new", "none"})


def test_a_former_artefact_that_was_moved_aside_is_put_back_by_a_save_that_fails(tmp_path):
    io.save(tmp_path / "a", OLD)
    (tmp_path / "a").rename(tmp_path / ".a.former-xyz")
    with pytest.raises(ArtefactError, match="there already"):
        io.save(tmp_path / "a", NEW)
    assert is_(io.load(tmp_path / "a").params, OLD)


def test_a_sigkill_in_the_middle_of_writing_leaves_the_old_one(tmp_path):
    io.save(tmp_path / "a", OLD)
    program = """
    import sys, numpy as np
    from lrjax import io
    real = io.hf.write_file
    def slow(*args, **kwargs):
        real(*args, **kwargs)
        print("written", flush=True)
        sys.stdin.read()
    io.hf.write_file = slow
    io.save(sys.argv[1], {"w": np.zeros(3, np.float32)}, overwrite=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline().strip() == b"written"
        assert len(atomic.interrupted(tmp_path / "a")) == 1
        child.send_signal(signal.SIGKILL)
    assert is_(io.load(tmp_path / "a").params, OLD)
    assert len(atomic.interrupted(tmp_path / "a")) == 1
    io.save(tmp_path / "a", NEW, overwrite=True)
    assert atomic.interrupted(tmp_path / "a") == ()
