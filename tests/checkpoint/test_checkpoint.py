"""Checkpoints: what is read is what was written, to the bit, by any number of processes; what is damaged, is told."""

import json
import random
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mixed_tensors import all_same, any_assignment, assert_kept, copied, mixed_model, one_round, same
from safetensors.torch import save_file
from stopped_runs import Stopped, ends, go, latest, rounds
from together import together
from torch.nn import functional as F
from zoo import METHODS, MODELS, mlp

from skerry import Checkpoints, Plan, ensemble, relay, train
from skerry.checkpoint import CheckpointError, layout, save
from skerry.checkpoint.load import load_latest
from skerry.checkpoint.save import save_checkpoint
from skerry.checkpoint.state import State
from skerry.files import atomic
from skerry.model.optimizer_state import SEPARATOR
from skerry.model.tensors import named_tensors
from skerry.partitions import Everything
from skerry.runtimes import Serial
from skerry.runtimes.runtime import Beginning
from skerry.subnet.index import Index
from skerry.subnet.slicing import take
from skerry.weights.source import FromModel

pytestmark = pytest.mark.usefixtures("no_costs")


def beginning(model, plan, source):
    assignment = any_assignment(plan.num_units, 2, 0.0, rng())
    return Beginning(model=model, plan=plan, source=source, assignment=assignment, start={}, state={})


def load(folder, plan, model, runtime):
    return load_latest(folder, plan, named_tensors(model), runtime, run="mine", method="ist")


def store_in(folder, state, store, runtime, *, run="mine", before=None):
    return save_checkpoint(folder, state, store, runtime, run=run, method="ist", before=before)


def read_by_one(folder, plan, model):
    found = load(folder, plan, model, Serial())
    return {name: found.read(name) for name in found.sizes}


class Undisturbed(dict):
    """How runs end that are not stopped, by runtime and method; each is made when it is asked for."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __missing__(self, key):
        how, method = key
        self[key] = ends(self.folder / how / method, how, method=method)
        return self[key]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(
    ("method", "stop"),
    [
        ("ist-uneven-travel", 4),
        *(pytest.param("ist-uneven-travel", k, marks=pytest.mark.slow) for k in (0, 1, 2)),
        pytest.param("ist-slow-core", 3, marks=pytest.mark.slow),
        ("ist-core-overlap-travel", 2),
        pytest.param("diloco", 1, marks=pytest.mark.slow),
        ("fedrolex", 2),
    ],
)
@pytest.mark.parametrize("how", ["serial", "processes"])
def test_resuming_from_any_round_ends_with_the_same_bits(tmp_path, undisturbed, how, method, stop):
    with pytest.raises(Stopped):
        ends(tmp_path, how, method=method, stop=stop)
    assert rounds(tmp_path) == list(range(1, stop + 1))[-2:]
    resumed = ends(tmp_path, how, method=method, resume=True)
    for mine, expected in zip(resumed, undisturbed[how, method], strict=True):
        assert all_same(mine, expected)
    assert rounds(tmp_path) == [4, 5]
    files = {path.name for path in latest(tmp_path).iterdir()}
    assert files == {"index.json", *(f"{rank}-of-{len(resumed)}.safetensors" for rank in range(len(resumed)))}


@pytest.mark.parametrize(("one", "other"), [("serial", "processes"), ("processes", "serial")])
def test_what_workers_keep_for_themselves_goes_on_in_another_runtime(tmp_path, undisturbed, one, other):
    with pytest.raises(Stopped):
        ends(tmp_path, one, method="diloco", stop=3)
    ours, meant = ends(tmp_path, other, method="diloco", resume=True)[0], undisturbed["serial", "diloco"][0]
    for name in meant:
        if name.startswith("calibrated "):
            torch.testing.assert_close(ours[name], meant[name])


@pytest.mark.parametrize(("one", "other"), [("serial", "processes"), ("processes", "serial")])
def test_a_run_that_changes_its_runtime_ends_with_the_bits_of_one_that_did_not(tmp_path, undisturbed, one, other):
    with pytest.raises(Stopped):
        ends(tmp_path, one, stop=3)
    resumed = ends(tmp_path, other, resume=True)
    ours, meant = resumed[0], undisturbed["serial", "ist-uneven-travel"][0]
    for name in meant:
        if name.startswith("calibrated ") and not name.endswith(("running_mean", "running_var")):
            assert same(ours[name], meant[name]), name
    assert torch.equal(ours["trained"], meant["trained"])


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = ends(tmp_path, "processes")
    assert all(all_same(a, b) for a, b in zip(ends(tmp_path, "processes", resume=True), first, strict=True))
    with pytest.raises(Stopped):
        ends(tmp_path, "processes", stop=0)  # without resume it begins anew


@settings(max_examples=6, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    writers=st.integers(0, 4),
    readers=st.integers(1, 4),
    density=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_any_number_of_processes_reads_what_any_number_has_written(writers, readers, density, seed):
    """0 writers: the serial runtime, of two workers."""
    torch.manual_seed(seed)
    model, plan = mixed_model(complex128=False)
    rng = torch.Generator().manual_seed(seed)
    now, then = (any_assignment(plan.num_units, writers or 2, density, rng) for _ in range(2))
    others = any_assignment(plan.num_units, readers, density, rng)
    state = State(7, torch.arange(plan.num_units), 2)
    state.totals["flop"] = 0.1 + 0.2

    def trained(runtime, workers, model):
        store = runtime.keep(
            Beginning(model=model, plan=plan, source=FromModel(model), assignment=now, start={}, state={})
        )
        one_round(store, workers, then, 0)
        return store

    serial = trained(Serial(), range(now.num_workers), other_of(model))
    expected = copied(serial.tensors)

    def write_it(member):
        store = trained(member, [member.rank], model)
        store_in(folder, state, store, member)
        return copied(store.shards())

    def read_it(member, assignment):
        found = load(folder, plan, model, member)
        assert (found.state.round, found.state.bad_rounds, found.state.totals) == (7, 2, state.totals)
        assert torch.equal(found.state.trained, state.trained)
        assert {n: (t.shape, t.dtype) for n, t in found.sizes.items()} == {
            n: (t.shape, t.dtype) for n, t in expected.items()
        }
        of_optimizer = {n: t for n, t in found.sizes.items() if SEPARATOR in n}
        return copied(
            member.keep(
                Beginning(model=model, plan=plan, source=found, assignment=assignment, state=of_optimizer, saved=found)
            ).shards()
        )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = together(writers, write_it) if writers else store_in(folder, state, serial, Serial())
        assert all_same(read_by_one(folder, plan, model), expected)
        assert_kept(plan, expected, others, together(readers, lambda member: read_it(member, others)))
        if writers:  # the same again: everybody has its own file
            again = together(writers, lambda member: read_it(member, then))
            assert all(all_same(a, b) for a, b in zip(again, kept, strict=True))
        found = load(folder, plan, model, Serial())
        for name in ("w", "three", "blocks.1.two", "shared"):
            some = [(torch.rand(s, generator=rng) < 0.5).nonzero().flatten() for s in expected[name].shape]
            cut = tuple(map(Index, some))
            assert same(found.read(name, cut), take(expected[name], cut))
        cut = (Index(torch.tensor([0, 3])), None)
        assert same(found.read("w", cut), take(expected["w"], cut))
        assert same(found.read("w", (None, Index.run(2, 2))), expected["w"][:, :0])


def other_of(model):
    other = type(model)(complex128=False)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("where", ["second file", "index", "old set", "total"])
def test_what_breaks_off_a_write_leaves_the_last_set(tmp_path, undisturbed, monkeypatch, where):
    """A kill between the files of a set, before and after it becomes the last one."""
    real_save, real_write, real_remove = save.save_tensors, atomic.write, atomic.remove_folder

    def save_some(tensors, path, told):
        real_save(tensors, path, told)
        if where == "second file" and "round-3" in str(path) and "1-of-3" in str(path):
            raise Stopped  # its draft is left

    def write_index(path, content):
        if where == "index" and path.name == "index.json" and json.loads(content)["round"] == 3:
            raise Stopped
        real_write(path, content)

    def remove(path):
        if where == "old set" and path.name == "1-round-1":
            raise Stopped
        real_remove(path)

    with monkeypatch.context() as patched:
        patched.setattr(save, "save_tensors", save_some)
        patched.setattr(atomic, "write", write_index)
        patched.setattr(atomic, "remove_folder", remove)
        with suppress(Stopped) if where == "total" else pytest.raises(Stopped):
            ends(tmp_path, "processes", stop=4 if where == "total" else None)
    last_round = {"second file": 2, "index": 2, "old set": 3, "total": 4}[where]
    assert rounds(tmp_path)[-1] == last_round
    if where == "second file":
        assert not (tmp_path / "checkpoint" / "3-round-3" / "1-of-3.safetensors").exists()
    half = tmp_path / "checkpoint" / "9-round-4"
    half.mkdir()
    (half / ".2-of-3.safetensors.draft").write_bytes(b"half")
    (half / "0-of-3.safetensors").write_bytes(b"another half")
    resumed = ends(tmp_path, "processes", resume=True)
    for mine, expected in zip(resumed, undisturbed["processes", "ist-uneven-travel"], strict=True):
        assert all_same(mine, expected)
    assert rounds(tmp_path) == [4, 5]
    assert len(layout.sets(tmp_path)) == 2


def test_there_is_nothing_to_resume_from_before_the_first_set_is_complete(tmp_path, undisturbed, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "write", lambda *args: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            ends(tmp_path, "processes")
    assert (len(layout.sets(tmp_path)), rounds(tmp_path)) == (1, [])
    resumed = ends(tmp_path, "processes", resume=True)
    for mine, expected in zip(resumed, undisturbed["processes", "ist-uneven-travel"], strict=True):
        assert all_same(mine, expected)


def test_machines_without_a_shared_folder_need_their_own_files_only(tmp_path, undisturbed):
    def part(member, **more):
        return go(member, tmp_path / f"machine {member.rank}", **more)

    with pytest.raises(Stopped):
        together(3, lambda member: part(member, stop=3))
    for rank in range(3):
        files = sorted(str(p.relative_to(tmp_path / f"machine {rank}")) for p in tmp_path.glob(f"machine {rank}/*/*/*"))
        names = [f"{rank}-of-3.safetensors", *(["index.json"] if rank == 0 else [])]
        assert files == [f"checkpoint/{k}-round-{k}/{name}" for k in (2, 3) for name in names]
    kept = together(3, lambda member: copied(part(member, resume=True).store.shards()))
    for mine, expected in zip(kept, undisturbed["processes", "ist-uneven-travel"], strict=True):
        assert all(same(tensor, expected[name]) for name, tensor in mine.items())


def test_checkpoints_are_written_now_and_then_and_at_the_end(tmp_path):
    seen = []

    def work(member):
        model, plan, _ = mlp()
        store = member.keep(
            Beginning(
                model=model,
                plan=plan,
                source=FromModel(model),
                assignment=Everything(2).assign(plan.axes, 0),
                start={},
                state={},
            )
        )
        keeps = Checkpoints(folder=tmp_path, every_s=1000)
        for round, done in ((1, False), (2, False), (3, True)):
            keeps.save_if_due("ist", State(round, torch.zeros(plan.num_units)), store, member, done=done)
            seen.append((round, bool(rounds(tmp_path))))

    together(2, work)
    assert sorted(seen) == [(1, False)] * 2 + [(2, False)] * 2 + [(3, True)] * 2


# ---- what is damaged, foreign or missing


@pytest.fixture
def written(tmp_path):
    """A set of two files of a small model; its folder, plan and model."""
    model, plan, _ = mlp(hidden=(3, 2))

    def work(member):
        store = member.keep(beginning(model, plan, FromModel(model)))
        store_in(tmp_path, State(3, torch.arange(plan.num_units)), store, member)

    together(2, work)
    return tmp_path, plan, model


def rng():
    return torch.Generator().manual_seed(0)


def files_of(folder):
    return [latest(folder) / f"{rank}-of-2.safetensors" for rank in range(2)]


def read_by_two(folder, plan, model):
    def work(member):
        found = load(folder, plan, model, member)
        return copied(member.keep(beginning(model, plan, found)).shards())

    return together(2, work)


def test_a_run_that_begins_anew_and_is_killed_leaves_the_last_set_of_the_same_round(written, monkeypatch):
    folder, plan, model = written
    before = read_by_one(folder, plan, model)

    def write_other_values(member):
        other = other_of_mlp(model)
        now = any_assignment(plan.num_units, 2, 0.0, rng())
        store = member.keep(
            Beginning(model=other, plan=plan, source=FromModel(other), assignment=now, start={}, state={})
        )
        store_in(folder, State(3, torch.arange(plan.num_units)), store, member)

    saved = []

    def save_some(tensors, path, told):
        save_file(tensors, path, told)
        saved.append(path)
        if len(saved) == 2:  # the first has its name already
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(save, "save_tensors", save_some)
        with pytest.raises(Stopped):
            together(2, write_other_values)
    assert all_same(read_by_one(folder, plan, model), before)
    for _ in range(2):
        together(2, write_other_values)
        assert len(layout.sets(folder)) == 1  # what was there is of a run that is given up
    assert not all_same(read_by_one(folder, plan, model), before)


def other_of_mlp(model):
    other, _, _ = mlp(hidden=(3, 2))
    other.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
    return other


def test_every_flipped_byte_of_a_file_is_noticed(written):
    folder, plan, model = written
    path = files_of(folder)[1]
    content = path.read_bytes()
    before = read_by_one(folder, plan, model)
    some = random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    positions = [*range(8), *some.sample(range(8, header), 150), *some.sample(range(header, len(content)), 150)]
    for at in [*positions, header - 1, header, len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << some.randrange(8))]) + content[at + 1 :])
        with pytest.raises(CheckpointError, match=path.name) as error:
            read_by_one(folder, plan, model)
        assert str(path) in str(error.value)
    for length in (0, 5, 8, header - 1, header, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=path.name):
            read_by_one(folder, plan, model)
    path.write_bytes(content)
    assert all_same(read_by_one(folder, plan, model), before)


def test_every_flipped_byte_of_the_index_is_noticed(written):
    folder, plan, model = written
    path = latest(folder) / "index.json"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(CheckpointError) as error:
            read_by_one(folder, plan, model)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)
    for text in (b"", b"[]", b"null", b'"x"', content[:-3], b"\xff\xfe"):
        path.write_bytes(text)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            read_by_one(folder, plan, model)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_file_is_named_by_its_own_process_and_by_others(written, rank):
    folder, plan, model = written
    path = files_of(folder)[rank]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for read in (read_by_one, read_by_two):
        with pytest.raises(CheckpointError, match=f"{path.name}.*checksum"):
            read(folder, plan, model)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_file_is_named(written, rank):
    folder, plan, model = written
    path = files_of(folder)[rank]
    path.unlink()
    for read in (read_by_one, read_by_two):
        with pytest.raises(CheckpointError, match=f"{path.name}(?!.*checksum)"):
            read(folder, plan, model)


def test_foreign_files_are_refused(written):
    folder, plan, model = written
    one, other = files_of(folder)
    content = [path.read_bytes() for path in (one, other)]
    save_file({"a": torch.ones(2)}, one)
    with pytest.raises(CheckpointError, match=r"0-of-2\.safetensors\b.*'None'.*'skerry-checkpoint-"):
        read_by_one(folder, plan, model)
    one.write_bytes(content[1])  # right files, wrong places
    other.write_bytes(content[0])
    for read in (read_by_one, read_by_two):
        with pytest.raises(CheckpointError, match=r"\d-of-2\.safetensors\b.*\bindex\.json"):
            read(folder, plan, model)


@pytest.mark.parametrize(("round", "run"), [(4, "mine"), (3, "another")])
def test_a_file_of_another_round_or_run_is_refused(written, tmp_path_factory, round, run):
    folder, plan, model = written
    other = tmp_path_factory.mktemp("other")

    def work(member):
        moved = other_of_mlp(model)
        store = member.keep(beginning(moved, plan, FromModel(moved)))
        store_in(other, State(round, torch.arange(plan.num_units)), store, member, run=run)

    together(2, work)
    shutil.copy(files_of(other)[1], files_of(folder)[1])
    for read in (read_by_one, read_by_two):
        with pytest.raises(CheckpointError, match=r"1-of-2\.safetensors\b.*\bindex\.json"):
            read(folder, plan, model)
    if run == "another":
        for read in (read_by_one, read_by_two):
            with pytest.raises(CheckpointError, match=r"index\.json.*settings"):
                read(other, plan, model)


def test_another_methods_checkpoint_is_refused(tmp_path):
    """A relay and an ensemble train the same nets."""
    torch.manual_seed(0)
    model, plan, _ = mlp(norm=False)
    data = MODELS["mlp"][1](2)

    def run(method, **more):
        keep = Checkpoints(folder=tmp_path, every_s=0, **more)
        optimizer = METHODS["ist"].optimizer
        train(model, F.cross_entropy, data, plan=plan, algorithm=method(2, local_steps=1), optimizer=optimizer,
              num_rounds=2, checkpoints=keep, verify=False)  # fmt: skip

    run(relay)
    with pytest.raises(CheckpointError, match=r"index\.json.*'relay'.*'ensemble'") as error:
        run(ensemble, resume=True)
    assert "\n" not in str(error.value)
    run(relay, resume=True)


def test_a_checkpoint_of_an_older_version_is_not_taken_for_none(tmp_path):
    (tmp_path / "checkpoint.json").write_text('{"format": "skerry-checkpoint-3"}')
    model, plan, _ = mlp(hidden=(3, 2))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json.*version"):
        load(tmp_path, plan, model, Serial())


def test_another_models_checkpoint_is_refused(written):
    folder, plan, model = written

    def load_sizes(sizes):
        return load_latest(folder, plan, sizes, Serial(), run="mine", method="ist")

    sizes = {**named_tensors(model), "out.weight": torch.zeros(4, 3)}
    with pytest.raises(CheckpointError, match=r"out\.weight\b.*\(4, 2\).*\(4, 3\)"):
        load_sizes(sizes)
    sizes["out.weight"] = torch.zeros(4, 2, dtype=torch.float64)
    with pytest.raises(CheckpointError, match=r"out\.weight\b.*\btorch\.float32\b.*\btorch\.float64\b"):
        load_sizes(sizes)
    with pytest.raises(CheckpointError, match=r"\bextra\b.*\(1,\)"):
        load_sizes({**named_tensors(model), "extra": torch.zeros(1)})


def test_another_plans_checkpoint_is_refused(written):
    folder, plan, model = written
    for other in (plan.without("h0"), Plan.whole(model)):
        with pytest.raises(CheckpointError, match=r"index\.json.*\bplan\b"):
            load(folder, other, model, Serial())


def test_all_processes_hear_of_a_damaged_index(written):
    folder, plan, model = written
    path = latest(folder) / "index.json"
    path.write_text("{")
    told = {}

    def work(member):
        try:
            load(folder, plan, model, member)
        except CheckpointError as error:
            told[member.rank] = str(error)

    together(2, work)
    assert str(path) in told[0]
    assert told[0] == told[1]


def test_no_pickle_in_the_files(written):
    folder, _, _ = written
    for path in files_of(folder):
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert json.loads(header["__metadata__"]["state"])["round"] == 3
        assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} <= {"F32", "I64", "BOOL"}
