"""bench/sites.py: its road, its adversary against the real server in memory, its plan, and what it tells apart."""

import json
import socket
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

if find_spec("flwr") is None:
    pytest.skip("needs the extra federated", allow_module_level=True)

from federation import STEPS, federated, joined
from flwr.app import ConfigRecord, Message, RecordDict
from safetensors.torch import save_file

from skerry import ist

TINY = {"method": "ist", "workers": 2, "rounds": 2, "local_steps": 1, "model.hidden": 8}


@pytest.fixture(scope="module")
def faults(load_script):
    return load_script("federated/faults.py")


@pytest.fixture
def road(load_script):
    """A road to an open port, and what listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = load_script("federated/road.py").Road(listening.getsockname()[1])
        yield made, listening
        made.close()


def through(road, listening, data):
    """Return what arrives of ``data``; the other end says a byte when it has all."""
    with socket.create_connection(("127.0.0.1", road.port), 10) as here:
        there, _ = listening.accept()
        there.settimeout(10)
        with there:
            here.sendall(data)
            got = b""
            while len(got) < len(data) and (part := there.recv(2**16)):
                got += part
            there.sendall(b"!")
            assert here.recv(1) == b"!"
            return got


def test_a_road_counts_records_and_spoils_one_byte(road):
    made, listening = road
    data = bytes(range(256)) * 40
    assert through(made, listening, data) == data
    assert (made.bytes_up, made.bytes_down, bytes(made.recorded)) == (len(data), 1, data)
    made.spoil()
    got = through(made, listening, data)
    assert sum(a != b for a, b in zip(got, data, strict=True)) == made.num_spoilt == 1
    assert through(made, listening, data) == data


def test_a_road_that_is_cut_carries_nothing_until_it_is_mended(road):
    made, listening = road
    with socket.create_connection(("127.0.0.1", made.port), 10) as here:
        there, _ = listening.accept()
        with there:
            made.cut()
            assert (here.recv(1), there.recv(1)) == (b"", b"")
    with socket.create_connection(("127.0.0.1", made.port), 10) as here:
        assert here.recv(1) == b""
    made.mend()
    assert through(made, listening, b"x") == b"x"


@pytest.mark.usefixtures("no_costs")
@pytest.mark.filterwarnings("ignore:(round|data|the server):UserWarning")
def test_what_the_adversary_sends_is_refused(load_script):
    spoilt = load_script("federated/spoilt.py")
    ways, first, rounds = list(spoilt.CONTENTS.items()), list[RecordDict](), 1 + len(spoilt.CONTENTS)

    def change(message, reply):
        if message.metadata.message_type != "train.subnet":
            return None
        round = message.content["numbers"]["round"]
        if not round:
            first.append(reply.content)
            return None
        return Message(ways[round - 1][1](reply, first[0]), reply_to=message)

    three = ist(3, local_steps=STEPS)
    ours = federated(three, joined(three, {1: change}, num_rounds=rounds), num_rounds=rounds, max_bad_rounds=99)
    assert [record.refused for record in ours.history] == [(), *[(1,)] * len(ways)]


def test_orders_are_carried_out_once_and_told(load_script, tmp_path):
    spoilt = load_script("federated/spoilt.py")
    (tmp_path / "orders-1").write_text("NaN: loss\nreplay: an update of an earlier round\n")
    spoiling = spoilt.Spoiling(tmp_path, 1)
    assert spoiling._next(3) == "NaN: loss"
    assert spoiling._next(4) == ""  # there is no earlier update yet
    spoiling._first = RecordDict({"numbers": ConfigRecord({"a": 1})})
    assert spoilt.Spoiling(tmp_path, 2)._next(5) == ""
    assert [spoiling._next(5), spoiling._next(6)] == ["replay: an update of an earlier round", ""]
    told = [json.loads(line) for line in (tmp_path / "told-1").read_text().splitlines()]
    assert [each["round"] for each in told] == [3, 5]


def test_the_plan_is_a_function_of_the_seed(faults):
    plan = faults.planned(80, 0, 4, list(faults.WAYS))
    assert plan == faults.planned(80, 0, 4, list(faults.WAYS))
    assert plan != faults.planned(80, 1, 4, list(faults.WAYS))
    assert {kind: sum(f.kind == kind for f in plan) for kind in faults.WAYS} == dict.fromkeys(faults.WAYS, 10)


@pytest.fixture
def judged(faults):
    plan = [faults.Fault("NaN", "NaN: loss", 1, 3, 0.0, 0.0)]

    def problems(refused, *, happened=1, let=(), told=1, sizes=()):
        each = {"round": 4, "site": 1, "what": "NaN: loss"}
        run = SimpleNamespace(
            happened=faults.Counter({"NaN": happened}), let=list(let), sizes=sizes, told=lambda: [each] * told
        )
        return faults.judged(run, plan, refused, 9, 9)

    return problems


def test_what_was_accepted_let_in_or_did_not_happen_is_told(judged):
    assert judged({(4, 1)}) == []
    assert judged({(4, 0), (3, 1)}) == ["accepted in round 4 from site 1: NaN: loss"]
    assert judged({(4, 1)}, let=["PullMessages"]) == ["let in: PullMessages"]
    assert judged({(4, 1)}, happened=0) == ["1 of NaN did not happen"]
    assert judged(set(), told=0) == ["not sent, 1 times: NaN: loss"]


def test_a_server_that_grows_is_told(judged):
    flat, more = [(10**8, 20)] * 20, [(10**8 * (1 + k // 10), 20 * (1 + k // 10)) for k in range(20)]
    assert judged({(4, 1)}, sizes=flat) == []
    told = judged({(4, 1)}, sizes=more)
    assert [each.partition(" of")[0] for each in told] == ["memory", "open files"]


@pytest.mark.usefixtures("no_costs")
def test_the_serial_run_differs_where_something_else_was_refused(load_script, tmp_path):
    serial = load_script("federated/serial.py")
    result = serial.trained(TINY, {(1, 0)})
    save_file(result.model.state_dict(), tmp_path / "model.safetensors")
    counts = result.state.trained.tolist()
    (tmp_path / "units.json").write_text(json.dumps({"axes": [{"counts": counts[:8]}, {"counts": counts[8:]}]}))
    assert serial.problems_of(tmp_path, TINY, {(1, 0)}) == []
    assert "counts of units" in serial.problems_of(tmp_path, TINY, {(1, 1)})
    assert serial.problems_of(tmp_path, TINY)
    assert serial.units_lost(TINY, {(1, 0), (0, 1)}) == 2 * 8
    assert sum(2 - n for n in counts) == serial.units_lost(TINY, {(1, 0)})
