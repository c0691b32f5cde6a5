"""Built things are kept by what they are made from, made once, and never half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lab import cache
from lab.build.steps import BuildError, Steps

ROOT = Path(cache.__file__).parents[1]


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "file").write_text("content")
    (top / "link").symlink_to("sub/file")
    return top


def write(text):
    def make(directory: Path) -> None:
        (directory / "made").write_text(text)

    return make


CHANGES = {
    "content": lambda tree: (tree / "sub/file").write_text("other"),
    "name": lambda tree: (tree / "sub/file").rename(tree / "sub/other"),
    "executable": lambda tree: (tree / "sub/file").chmod(0o755),
    "link": lambda tree: ((tree / "link").unlink(), (tree / "link").symlink_to("sub")),
    "empty directory": lambda tree: (tree / "new").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_a_tree_changes_its_digest(tree, change):
    before = cache.digest(tree)
    change(tree)
    assert cache.digest(tree) != before


def test_a_digest_is_of_content_alone(tree, tmp_path):
    before = cache.digest(tree, "text")
    os.utime(tree / "sub/file", (1, 1))
    (tree / "sub/__pycache__").mkdir()
    (tree / "sub/__pycache__/file.pyc").write_text("compiled")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    tree.rename(elsewhere / "tree")
    assert cache.digest(elsewhere / "tree", "text") == before
    assert cache.digest("a", "bc") != cache.digest("ab", "c")


def test_what_is_there_is_not_made_again(tmp_path):
    place = tmp_path / "part-1"
    assert cache.produce(place, write("first"))
    assert not cache.produce(place, write("second"))
    assert (place / "made").read_text() == "first"


def test_a_failed_build_leaves_nothing(tmp_path):
    place = tmp_path / "part-1"

    def fail(directory: Path) -> None:
        write("half")(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.produce(place, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["part.lock"]


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path):
    killed = f"""
import os, signal, sys
from pathlib import Path
from lab import cache
def make(directory):
    (directory / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
cache.produce(Path({str(tmp_path)!r}) / "part-1", make)
"""
    assert subprocess.run([sys.executable, "-c", killed], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "part-1.tmp" / "half").exists()
    assert cache.produce(tmp_path / "part-2", write("whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-2", "part.lock"]


def test_two_at_once_make_it_once(tmp_path):
    place = tmp_path / "part-1"
    making, waiting = threading.Event(), threading.Event()
    made = []

    def slowly(directory: Path) -> None:
        made.append(directory)
        making.set()
        assert waiting.wait(10)

    first = threading.Thread(target=cache.produce, args=(place, slowly))
    first.start()
    assert making.wait(10)
    assert not cache.produce(place, slowly, waiting.set)
    first.join()
    assert len(made) == 1


def test_those_used_last_stay(tmp_path):
    for number in range(1, cache.KEEP + 1):
        cache.produce(tmp_path / f"part-{number}", write("it"))
        os.utime(tmp_path / f"part-{number}", (number, number))
    cache.produce(tmp_path / "part-1", write("used again"))
    cache.produce(tmp_path / "part-more-1", write("of another kind"))
    cache.produce(tmp_path / "part-new", write("one more"))
    kept = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert kept == {"part-1", "part-more-1", "part-new", *(f"part-{n}" for n in range(3, cache.KEEP + 1))}


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a build's commands run in namespaces, which needs root")


@as_root
def test_a_failed_command_shows_the_end_of_its_log(tmp_path):
    steps = Steps("part", tmp_path / "part.log")
    with pytest.raises(BuildError) as failure:
        steps.run("sh", "-c", "seq 1 100; exit 3")
    lines = str(failure.value).splitlines()
    assert lines[0] == f"part: sh ended with exit code 3; the end of {tmp_path / 'part.log'}:"
    assert [line.strip() for line in lines[1:]] == [str(n) for n in range(81, 101)]


@as_root
def test_stopping_ends_a_command_with_its_children(tmp_path):
    steps = Steps("part", tmp_path / "part.log")
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    failures = []

    def run() -> None:
        try:
            steps.run("sh", "-c", f"sleep 600 > {fifo} & wait")
        except BuildError as failure:
            failures.append(str(failure))

    thread = threading.Thread(target=run)
    thread.start()
    with fifo.open() as child:
        steps.stop()
        assert child.read() == ""  # the end of file: no child has it open any more
    thread.join()
    assert failures == ["part: interrupted"]
    with pytest.raises(BuildError, match="interrupted"):
        steps.run("true")


@as_root
def test_commands_end_with_a_build_that_is_killed(tmp_path):
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    command = f"setsid sleep 600 > {fifo} & wait"
    code = f"""
from pathlib import Path
from lab.build.steps import Steps
Steps("part", Path("part.log")).run("sh", "-c", {command!r})
"""
    build = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    with fifo.open() as child:
        build.kill()
        assert build.wait() == -signal.SIGKILL
        assert child.read() == ""
