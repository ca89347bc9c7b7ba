"""Two sets are kept: if a file of the latest is damaged in any way, a run ends as if it had never been written.

And a set that cannot be written leaves nothing, in no process.

Against a run that was never stopped, to the bit.
"""

import errno
import os
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
from mixed_tensors import all_same, copied
from stopped_runs import Stopped, ends, go, latest, rounds
from together import together

from skerry.checkpoint import CheckpointError, layout, load, save
from skerry.files import atomic

pytestmark = pytest.mark.usefixtures("no_costs")
HOWS = ("serial", "processes")


def cut(content, some):
    return content[: some.randrange(len(content))]


def flip(content, some):
    at = some.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << some.randrange(8)]) + content[at + 1 :]


def swap(content, some):
    return some.randbytes(len(content))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return {how: ends(tmp_path_factory.mktemp(how), how) for how in HOWS}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Runs that were stopped after three rounds: the sets of rounds 2 and 3 are there."""
    folders = {how: tmp_path_factory.mktemp("stopped") / how for how in HOWS}
    for how, folder in folders.items():
        with pytest.raises(Stopped):
            ends(folder, how, stop=3)
        assert rounds(folder) == [2, 3]
    return folders


@pytest.mark.parametrize(
    "damage", [cut, flip, pytest.param(swap, marks=pytest.mark.slow), None], ids=lambda d: d.__name__ if d else "delete"
)
@pytest.mark.parametrize(
    ("how", "name"),
    [*(("serial", name) for name in ("index.json", "0-of-1.safetensors")),
     ("processes", "index.json"), ("processes", "2-of-3.safetensors"),
     *(pytest.param("processes", f"{rank}-of-3.safetensors", marks=pytest.mark.slow) for rank in (0, 1))],
)  # fmt: skip
def test_any_damage_to_the_latest_set_costs_one_checkpoint_only(
    stopped, undisturbed, tmp_path, monkeypatch, how, name, damage
):
    folder = shutil.copytree(stopped[how], tmp_path / "run")
    path, some = latest(folder) / name, random.Random(f"{how} {name} {damage}")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes(), some))
    lines = list[str]()
    # Not catch_warnings: the workers are threads, and it is not safe there.
    monkeypatch.setattr(load, "warnings", SimpleNamespace(warn=lambda text, **more: lines.append(text)))
    resumed = ends(folder, how, resume=True)
    if (name, damage) == ("index.json", None):
        assert not lines  # a set without an index is one that a kill has left
    else:
        (line,) = lines
        assert all(words in line for words in (str(path), "after round 2")), line
        assert "\n" not in line
    assert all(all_same(mine, expected) for mine, expected in zip(resumed, undisturbed[how], strict=True))
    assert rounds(folder) == [4, 5]


def test_a_run_in_another_runtime_falls_back_too(stopped, undisturbed, tmp_path):
    folder = shutil.copytree(stopped["processes"], tmp_path / "run")
    (latest(folder) / "2-of-3.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"2-of-3\.safetensors.*after round 2$"):
        (resumed,) = ends(folder, "serial", resume=True)
    assert torch.equal(resumed["trained"], undisturbed["serial"][0]["trained"])


def test_machines_fall_back_together_where_one_has_a_damaged_file(undisturbed, tmp_path):
    def part(member, **more):
        return go(member, tmp_path / f"machine {member.rank}", **more)

    with pytest.raises(Stopped):
        together(3, lambda member: part(member, stop=3))
    (path,) = (tmp_path / "machine 2").glob("checkpoint/*-round-3/*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"machine 2/.*2-of-3\.safetensors.*after round 2$") as told:
        kept = together(3, lambda member: copied(part(member, resume=True).store.shards()))
    assert len([each for each in told if "checkpoint" in str(each.message)]) == 1
    for mine, expected in zip(kept, undisturbed["processes"], strict=True):
        assert all_same(mine, {name: expected[name] for name in mine})
    assert all(
        [p.name for p in sorted((tmp_path / f"machine {rank}" / "checkpoint").iterdir())] == ["5-round-4", "6-round-5"]
        for rank in range(3)
    )


@pytest.mark.parametrize("how", HOWS)
def test_two_damaged_sets_are_told_in_one_line(stopped, tmp_path, how):
    folder = shutil.copytree(stopped[how], tmp_path / "run")
    paths = sorted(folder.glob("checkpoint/*/0-of-*"))
    for path in paths:
        path.write_bytes(b"garbage")
    with pytest.raises(CheckpointError) as error:
        ends(folder, how, resume=True)
    assert all(str(path) in str(error.value) for path in paths)
    assert "\n" not in str(error.value)
    assert rounds(folder) == [2, 3]


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, *(pytest.param(n, marks=pytest.mark.slow) for n in (errno.EDQUOT, errno.EROFS, errno.EACCES))],
)
@pytest.mark.parametrize(("how", "name"), [("serial", "0-of-1"), ("processes", "2-of-3"), ("processes", "index")])
def test_a_set_that_cannot_be_written_is_given_up_by_all(tmp_path, undisturbed, monkeypatch, how, name, number):
    real_save = save.save_tensors

    def refuse(path):
        if "round-3" in str(path) and name in path.name:
            path.write_bytes(b"half")
            raise OSError(number, os.strerror(number))

    def save_some(tensors, path, metadata):
        refuse(path)
        real_save(tensors, path, metadata)

    def write_some(path, content):
        atomic.write_with(path, lambda draft: (refuse(draft), draft.write_bytes(content)))

    with monkeypatch.context() as patched:
        patched.setattr(save, "save_tensors", save_some)
        patched.setattr(atomic, "write", write_some)
        with pytest.raises(
            atomic.WriteFailed, match=rf"3-round-3/{name}.*not written.*after round 2 is kept$"
        ) as error:
            ends(tmp_path, how)
    assert "\n" not in str(error.value)
    assert rounds(tmp_path) == [1, 2]
    assert len(layout.sets(tmp_path)) == 2
    assert not list(tmp_path.rglob(".*"))
    resumed = ends(tmp_path, how, resume=True)
    assert all(all_same(mine, expected) for mine, expected in zip(resumed, undisturbed[how], strict=True))


def test_a_first_set_that_cannot_be_written_promises_nothing(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(save, "save_tensors", refuse)
    with pytest.raises(atomic.WriteFailed, match=r"no checkpoint yet$"):
        ends(tmp_path, "serial")
