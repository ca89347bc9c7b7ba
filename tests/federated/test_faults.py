"""Sites that are lost, late, or send something else: like refused workers of the serial runtime, to the bit."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi.routing import iter_route_contexts
from federation import ROUNDS, STEPS, arguments, assert_same, data_of_all, federated, joined, site
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.proto.message_pb2 import PushObjectResponse
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.superlink.servicer.fleet import fleet_handlers
from made_sites import MadeSites
from torch import nn
from torch.nn import functional as F
from zoo import adamw, blobs

from skerry import Clients, Plan, Session, ist, narrow, train
from skerry.algorithms import diloco, local_sgd
from skerry.callbacks import Callback
from skerry.federated import AtSite, Federated, OnSites, Site, TooFewSites, sites, trips
from skerry.federated.fleet import Fleet
from skerry.federated.messages import CutOff, Refused, written
from skerry.plan import In, Out
from skerry.training.phases.exchange_phase import TrainingFailed

pytestmark = [
    pytest.mark.usefixtures("no_costs"),
    pytest.mark.filterwarnings("ignore:(round|node|data|the server):UserWarning"),
]
THREE = ist(3, local_steps=STEPS)


class Spoilt:
    """The data of all, of which that of ``worker`` is NaN in some rounds, so that it is refused."""

    def __init__(self, worker: int, rounds: set[int]) -> None:
        self._data, self._worker, self._rounds = data_of_all(3), worker, rounds
        self.num_workers = 3

    def batches(self, worker: int, first_step: int, num_steps: int) -> Any:
        bad = worker == self._worker and first_step // STEPS in self._rounds
        return ((x * math.nan if bad else x, y) for x, y in self._data.batches(worker, first_step, num_steps))

    def sample(self, worker: int, num: int) -> Any:
        return self._data.sample(worker, num)


def refusing(worker: int, rounds: set[int], num_rounds: int) -> Any:
    """The serial runtime, where a worker is refused in some rounds."""
    given = arguments(THREE, num_rounds=num_rounds, max_bad_rounds=99)
    return train(loss_fn=F.cross_entropy, data=Spoilt(worker, rounds), verify=False, **given)


def with_number(name: str, value: Any) -> Any:
    def change(message: Message, reply: Message) -> Message:
        reply.content["numbers"][name] = value
        return Message(reply.content, reply_to=message)

    return change


def with_tensors(change: Any) -> Any:
    def changed(message: Message, reply: Message) -> Message:
        numbers = {k: v for k, v in reply.content["numbers"].items() if k != "header"}
        names = [("out.bias", torch.zeros(4))]
        return Message(written(numbers, dict(change(names))), reply_to=message)

    return changed


def with_bytes(change: Any) -> Any:
    def changed(message: Message, reply: Message) -> Message:
        array = reply.content["tensors"]["packed"]
        array.data = change(array.data)
        return Message(reply.content, reply_to=message)

    return changed


def replayed(first: list[Message]) -> Any:
    """What was sent in an earlier round once more."""
    return lambda message, reply: Message(first[0].content, reply_to=message)


FIRST: list[Message] = []
FAULTS = {
    "another token": with_number("token", "0" * 16),
    "no token": with_number("token", 1),
    "loss as text": with_number("loss", "0.1"),
    "loss is NaN": with_number("loss", math.nan),
    "header of others": with_number("header", "[]"),
    "tensors of others": with_tensors(lambda named: named),
    "no tensors": with_tensors(lambda named: []),
    "NaN": with_bytes(lambda data: b"\xff" * len(data)),
    "cut": with_bytes(lambda data: data[:-1]),
    "too long": with_bytes(lambda data: data + b"\0" * 1000),
    "replay": replayed(FIRST),
    "empty": lambda message, reply: Message(written({}), reply_to=message),
    "error without text": lambda message, reply: Message(Error(2, " "), reply_to=message),
    "error": lambda message, reply: Message(Error(2, "broken"), reply_to=message),
}


def test_what_a_site_should_not_send_is_not_used():
    """A fault in each round but the first: nothing of it is used, and nothing of the others is lost."""
    num_rounds, kinds = 1 + len(FAULTS), list(FAULTS.values())

    def change(message: Message, reply: Message) -> Message | None:
        if message.metadata.message_type != "train.subnet":
            return None
        round = message.content["numbers"]["round"]
        FIRST[:] = FIRST or [reply]
        return kinds[round - 1](message, reply) if round else None

    joined_ = joined(THREE, {1: change}, num_rounds=num_rounds)
    ours = federated(THREE, joined_, num_rounds=num_rounds, max_bad_rounds=99)
    assert [record.refused for record in ours.history] == [(), *[(1,)] * len(FAULTS)]
    assert_same(ours, refusing(1, set(range(1, num_rounds)), num_rounds), flop=False)


def test_a_reply_that_cannot_be_read_is_refused_alone():
    made, broken = joined(THREE), list[str]()
    pull, push = made.grid.pull_messages, made.grid.push_messages

    def push_messages(messages: Any) -> Any:
        (message,) = messages
        (number,) = push([message])
        numbers = message.content["numbers"]
        broken.extend([number] if (numbers.get("round"), numbers.get("worker")) == (1, 1) else [])
        return [number]

    def pull_messages(numbers: Any) -> Any:
        found = pull(numbers)
        if found and set(numbers) & set(broken):
            raise UnicodeDecodeError("utf-8", b"x", 0, 1, "of Flower")
        return found

    made.grid.push_messages, made.grid.pull_messages = push_messages, pull_messages
    ours = federated(THREE, made)
    lost = {record.round for record in ours.history if record.refused == (1,)}
    assert broken
    assert_same(ours, refusing(1, lost, ROUNDS), flop=False)


def test_a_site_that_cannot_begin_and_does_not_say_why_takes_no_part():
    made = MadeSites()
    made.join(lambda: site(THREE, 0), lambda message, reply: Message(Error(2, ""), reply_to=message))
    found = sites.Sites(made.grid, 3, {}, job="", poll_s=0.05, ttl_s=600.0)
    found.look()
    with pytest.warns(UserWarning, match="takes no part: it cannot begin .code 2"):
        found.look()
    assert not found.here


def test_a_site_that_cannot_make_its_part_ends_with_the_reason():
    """Asking again would not help; and the server does not wait for it."""

    def make() -> Site:
        raise ValueError("data: no such file")

    made = MadeSites()
    made.join(make)
    found = sites.Sites(made.grid, 3, {}, job="", poll_s=0.05, ttl_s=600.0)
    found.look()
    with pytest.raises(ValueError, match="data: no such file"):
        made.answer()
    with pytest.warns(UserWarning, match="takes no part: it cannot begin"):
        found.look()


def test_a_site_whose_key_is_of_another_number_takes_no_part():
    """Else each of its messages would be refused: it has the data of another site."""
    made = MadeSites()
    node = made.join(lambda: site(THREE, 0))
    settings = site(THREE, 0)._settings
    found = sites.Sites(made.grid, 3, settings, job="", poll_s=0.05, ttl_s=600.0, numbers={node: 2})
    found.look()
    with pytest.warns(UserWarning, match="join with --site 2"):
        found.look()
    assert not found.here


@pytest.mark.parametrize(
    ("bad", "worthless", "told"),
    [
        ({1}, with_number("loss", math.nan), ""),
        ({0, 1, 2}, with_number("loss", math.nan), "not finite were refused in 2 .* learning rate"),
        ({0, 1, 2}, with_bytes(lambda data: data[:-1]), "bytes, expected .* was refused in 2 .* same code"),
    ],
)
def test_nonsense_ends_the_training_only_where_all_sites_send_it(bad, worthless, told):
    made = joined(THREE, dict.fromkeys(bad, lambda m, r: worthless(m, r) if "token" in r.content["numbers"] else None))
    if len(bad) == 3:
        with pytest.raises(TrainingFailed, match=told):
            federated(THREE, made, max_bad_rounds=2)
    else:
        ours = federated(THREE, made, max_bad_rounds=2)
        assert [record.refused for record in ours.history] == [(1,)] * ROUNDS


@pytest.mark.parametrize("num", [0, -5, 2**40, 3.0])
def test_a_number_of_samples_that_cannot_be_is_refused(num):
    """Else one site could have all the weight, or a negative one."""
    weighted = narrow(3, local_steps=STEPS, by_samples=True)
    change = lambda m, r: with_number("num_samples", num)(m, r) if "token" in r.content["numbers"] else None  # noqa: E731
    ours = federated(weighted, joined(weighted, {1: change}))
    assert [record.refused for record in ours.history] == [(1,)] * ROUNDS
    assert all("num_samples" in record.faults[1] for record in ours.history)


def test_the_number_of_samples_leaves_a_site_only_where_it_is_asked_for():
    sent = dict[str, set[str]]()
    for name in ("plain", "by"):
        algorithm = narrow(3, local_steps=STEPS, by_samples=name == "by")
        change = lambda m, r, name=name: sent.setdefault(name, set()).update(r.content["numbers"])  # noqa: E731
        federated(algorithm, joined(algorithm, {1: change}, num_rounds=1), num_rounds=1)
    assert sent["by"] - sent["plain"] == {"num_samples"}


def test_data_that_do_not_tell_their_size_cannot_begin_where_it_is_asked_for():
    weighted = narrow(3, local_steps=STEPS, by_samples=True)
    session = Session(**arguments(weighted, loss_fn=F.cross_entropy, runtime=AtSite()))
    with pytest.raises(ValueError, match="Spoilt does not tell how many samples worker 0 has"):
        Site(session, Spoilt(0, set()), number=0)


@pytest.mark.usefixtures("clock")
def test_a_round_for_absent_sites_only_is_not_burned():
    few = replace(narrow(2, local_steps=STEPS), clients=Clients.spread(8, 3.0))
    made = MadeSites()
    made.join(lambda: site(few, 0, num_rounds=50))
    runtime = Federated(made.grid, patience_s=5.0, poll_s=1.0)
    with pytest.raises(TooFewSites, match="none of the sites whose turn it is"):
        federated(few, made, runtime=runtime, num_rounds=50)


def test_sites_that_took_no_part_are_told_that_it_is_over():
    made, heard = MadeSites(), list[str]()
    node = made.join(lambda: site(THREE, 0))
    made.sites[node] = lambda message, context: (
        heard.append(message.metadata.message_type),
        Message(RecordDict(), reply_to=message),
    )[1]
    sites.Sites(made.grid, 3, {}, job="", poll_s=0.05, ttl_s=600.0).dismiss()
    assert heard == [sites.BYE]


def test_there_is_a_look_after_the_time_is_over(monkeypatch):
    """A look may take long; what came meanwhile is not lost."""
    clock, answers = [0.0], iter([[], [Message(RecordDict(), 1, "query")]])
    monkeypatch.setattr(trips, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda s: None))

    def pull_messages(numbers: Any) -> Any:
        clock[0] += 10.0
        return next(answers)

    found = trips.Trips[str](SimpleNamespace(pull_messages=pull_messages), 1.0)
    found.open["a"] = "b"
    assert [about for about, _ in found.wait(5.0)] == ["b"]


def test_a_site_that_is_lost_costs_its_rounds_and_comes_back():
    num_rounds = 5
    made = joined(THREE, num_rounds=num_rounds)
    node = list(made.sites)[2]

    def after(session: Any, record: Any) -> None:
        if record.round == 0:
            made.leave(node)
        if record.round == 2:
            made.join(lambda: site(THREE, 2, num_rounds=num_rounds))

    ours = federated(THREE, made, num_rounds=num_rounds, callbacks=[Callback(on_round=after)], max_bad_rounds=2)
    lost = {record.round for record in ours.history if record.refused == (2,)}
    assert lost == {1, 2, 3}  # in round 3 it is asked who it is
    assert_same(ours, refusing(2, lost, num_rounds), flop=False)


def test_a_late_site_is_left_out_until_it_answers(clock):
    """What it was asked is forgotten after the deadline, and the site takes part again."""
    num_rounds, made = 5, joined(THREE, num_rounds=5)
    node = list(made.sites)[1]

    def after(session: Any, record: Any) -> None:
        made.silent = {node} if record.round == 0 else set()

    runtime = Federated(made.grid, deadline_s=7e3, poll_s=1e3)
    ours = federated(THREE, made, num_rounds=num_rounds, runtime=runtime, callbacks=[Callback(on_round=after)])
    lost = {record.round for record in ours.history if record.refused == (1,)}
    assert lost == {1, 2}
    assert 7e3 <= clock[0] < 14e3  # one deadline was waited for
    assert_same(ours, refusing(1, lost, num_rounds), flop=False)
    assert_nothing_is_left(made)


def assert_nothing_is_left(made: MadeSites) -> None:
    state = made.fleet.state
    assert (state.num_message_ins(), state.num_message_res(), len(state.object_store)) == (0, 0, 0)
    assert (state._object_push_sessions, state._left, state._answers, state._refused) == ({}, {}, {}, {})


class Uploads:
    """What a site uploads in each round, cut short or spoilt.

    Args:
        made: the sites.
        node: whose uploads.
        faults: of rounds, from ``BROKEN``.
    """

    def __init__(self, made: MadeSites, node: int, faults: dict[int, str]) -> None:
        self._made, self._node, self._faults, self.round = made, node, faults, -1
        self._push_message, self._push_object = made.client.PushMessages, made.client.PushObject
        made.client.PushMessages, made.client.PushObject = self.push_message, self.push_object
        self._num = 0

    def change(self, message: Message, reply: Message) -> Message | None:
        """Make the reply of the round's fault."""
        self.round, self._num = message.content["numbers"].get("round", -1), 0
        fault = self._faults.get(self.round)
        if fault == "many parts":
            return Message(RecordDict({f"{k}": ConfigRecord({"k": k}) for k in range(20)}), reply_to=message)
        if fault == "long text":
            return Message(Error(2, "x" * 10**6), reply_to=message)
        return with_bytes(lambda data: data + b"0" * 10**6)(message, reply) if fault == "large" else None

    def push_message(self, request: Any) -> Any:
        """Send the head of a reply."""
        fault = self._faults.get(self.round) if request.node.node_id == self._node else None
        if fault == "other head":
            request.message_object_trees[0].object_id = "0" * 64
        if fault == "no names":
            request.message_object_trees[0].children[0].object_id = "part"
        if fault == "never ends":
            request.messages_list[0].metadata.ttl = 1e9
        return self._push_message(request)

    def push_object(self, request: Any) -> Any:
        """Send a part of a reply."""
        fault = self._faults.get(self.round) if request.node.node_id == self._node else None
        self._num += 1
        if fault in (f"stops after {self._num - 1}", f"connects again after {self._num - 1}"):
            if "connects" in str(fault):
                self._made.fleet.state.deactivate_node(self._node)
                self._made.fleet.state.activate_node(self._node, 1800)
            raise ObjectPushError(request.object_id, request.run_id, request.session_id)
        if fault == "other bytes":
            request.object_content = request.object_content[::-1]
        if fault == "half of a part":
            request.object_content = request.object_content[: len(request.object_content) // 2]
        return self._push_object(request)


BROKEN = {
    "stops after 0": "stopped halfway",
    "stops after 1": "stopped halfway",
    "stops after 2": "stopped halfway",
    "connects again after 1": "stopped halfway",
    "connects again after 2": "stopped halfway",
    "other bytes": "a part of it is not what its head says",
    "half of a part": "a part of it is not what its head says",
    "no names": "a part of it is not what its head says",
    "other head": "its head is that of another message",
    "never ends": "it is no reply to what the site was sent",
    "many parts": "it has more parts than what the site was sent",
    "large": "it is larger than what the site was sent",
    "long text": "its text is too long",
}


@pytest.mark.filterwarnings("ignore:the server did not take:UserWarning")
def test_broken_uploads_cost_their_round_only_and_nobody_waits(clock, monkeypatch):
    """Every other round has a fault; the record says which. None is waited for, and nothing large is stored."""
    num_rounds, sizes = 2 * len(BROKEN) + 2, list[int]()
    made = joined(THREE, num_rounds=num_rounds)
    node = list(made.sites)[1]
    uploads = Uploads(made, node, {2 * k + 1: fault for k, fault in enumerate(BROKEN)})
    answered = made.sites[node]
    made.sites[node] = lambda message, context: (r := answered(message, context)) and (uploads.change(message, r) or r)
    put = made.fleet.state.object_store.put
    monkeypatch.setattr(made.fleet.state.object_store, "put", lambda i, c: (sizes.append(len(c)), put(i, c))[1])
    runtime = Federated(made.grid, deadline_s=7e3, poll_s=1e3)
    ours = federated(THREE, made, num_rounds=num_rounds, runtime=runtime)
    assert [record.refused for record in ours.history] == [(), (1,)] * len(BROKEN) + [(), ()]
    for record, told in zip(ours.history[1::2], BROKEN.values(), strict=False):
        assert told in record.faults[1]
    assert clock[0] < 7e3  # of all rounds together: no deadline was waited for
    assert max(sizes) < 10**5
    assert_same(ours, refusing(1, {record.round for record in ours.history if record.refused}, num_rounds), flop=False)
    assert_nothing_is_left(made)


def test_a_site_that_went_on_without_a_reply_is_not_waited_for():
    """It was killed with the message in its hands, and has come back under its own key."""
    made = MadeSites()
    node = made.join(lambda: site(THREE, 0))
    state = made.fleet.state
    asked = trips.Trips[str](made.grid, 0.05)
    asked.send(node, sites.BYE, written({}), "bye", 60.0)
    made.silent = {node}
    assert not list(asked.arrived())
    state.get_message_ins(node, 1)
    assert not list(asked.arrived())
    state.get_message_ins(node, 1)
    ((_, told),) = asked.arrived()
    assert isinstance(told, CutOff)
    assert_nothing_is_left(made)


def test_a_site_that_is_gone_in_the_middle_of_an_upload_is_not_waited_for():
    made = MadeSites()
    node = made.join(lambda: site(THREE, 0))

    def push_object(request: Any) -> Any:
        made.silent = {node}
        return PushObjectResponse(stored=True)

    made.client.PushObject = push_object
    asked = trips.Trips[str](made.grid, 0.05)
    asked.send(node, sites.BYE, written({}), "bye", 60.0)
    assert not list(asked.arrived())
    made.leave(node)
    ((_, told),) = asked.arrived()
    assert isinstance(told, CutOff)
    assert_nothing_is_left(made)


def test_the_rest_of_an_upload_may_come_later():
    made, held = MadeSites(), list[Any]()
    node = made.join(lambda: site(THREE, 0))
    push = made.client.PushObject

    def push_object(request: Any) -> Any:
        made.silent = {node}  # its upload takes long
        held.append(request)
        return PushObjectResponse(stored=True)

    made.client.PushObject = push_object
    asked = trips.Trips[str](made.grid, 0.05)
    asked.send(node, sites.BYE, written({}), "bye", 60.0)
    assert not list(asked.arrived())
    for request in held:
        assert not list(asked.arrived())
        push(request)
    ((about, message),) = asked.arrived()
    assert (about, message.has_error()) == ("bye", False)


@pytest.mark.parametrize("length", [1, 10**6])
def test_an_error_is_stored_unless_it_is_long(length):
    made = MadeSites()
    node = made.join(lambda: site(THREE, 0), lambda m, r: Message(Error(2, "x" * length), reply_to=m))
    asked = trips.Trips[str](made.grid, 0.05)
    asked.send(node, sites.BYE, written({}), "bye", 60.0)
    made.answer()
    assert made.fleet.state.num_message_res() == (length == 1)
    ((_, message),) = asked.arrived()
    assert isinstance(message, Refused) == (length > 1)


def test_an_error_at_a_site_costs_one_round():
    """The site is there: it has said so."""
    failing = lambda m, r: Message(Error(2, "broken"), reply_to=m) if m.content["numbers"].get("round") == 1 else None  # noqa: E731
    ours = federated(THREE, joined(THREE, {1: failing}, num_rounds=4), num_rounds=4)
    assert [record.refused for record in ours.history] == [(), (1,), (), ()]


def test_errors_at_all_sites_end_the_training():
    failing = lambda m, _: Message(Error(2, "broken"), reply_to=m) if m.content["numbers"].get("round", 0) > 1 else None  # noqa: E731
    joined_ = joined(THREE, dict.fromkeys(range(3), failing), num_rounds=20)
    with pytest.raises(TrainingFailed, match="broken"):
        federated(THREE, joined_, num_rounds=20)


def test_a_site_that_comes_while_others_train_takes_part_in_the_next_round(clock):
    made = MadeSites()
    nodes = [made.join(lambda k=k: site(THREE, k, num_rounds=4)) for k in range(2)]
    answer = made.answer

    def answered() -> None:
        if clock[0] == 3.0 and len(made.sites) == 2:  # seconds into the first round
            made.join(lambda: site(THREE, 2, num_rounds=4))
        made.silent = {nodes[1]} if 2.0 <= clock[0] < 6.0 else set()
        answer()

    made.answer = answered
    runtime = Federated(made.grid, deadline_s=3e3, patience_s=2.0, poll_s=1.0)
    ours = federated(THREE, made, num_rounds=4, runtime=runtime)
    assert [record.refused for record in ours.history] == [(2,), (), (), ()]


@pytest.mark.usefixtures("clock")
def test_a_site_with_other_settings_takes_no_part():
    made = MadeSites()
    made.join(lambda: site(THREE, 0, optimizer=adamw))
    made.join(lambda: site(THREE, 1))
    runtime = Federated(made.grid, patience_s=5.0, poll_s=1.0, at_least=2)
    with pytest.warns(UserWarning, match="takes no part.*optimizer"), pytest.raises(TooFewSites, match="1 of 3 sites"):
        federated(THREE, made, runtime=runtime)


def test_a_site_trains_only_what_is_for_its_data():
    own = site(THREE, 1)
    good = {"token": "t", "round": 0, "worker": 1, "steps": STEPS, "units": b"\0" * 3}
    for change in ({"worker": 0}, {"worker": 3}, {"worker": -1}, {"round": ROUNDS}, {"steps": 10**9}, {"units": b""}):
        with pytest.raises(Refused):
            own.train(written({**good, **change}, {}))


@pytest.mark.parametrize(
    ("algorithm", "told"),
    [
        (diloco(3, local_steps=STEPS), "outer optimizer"),
        (narrow(3, local_steps=STEPS, optimizer_state="travel"), "optimizer state"),
        (local_sgd(3, local_steps=STEPS, overlap=1), "wait for each other"),
    ],
)
def test_methods_that_keep_state_are_refused(algorithm, told):
    with pytest.raises(ValueError, match=told):
        federated(algorithm, MadeSites())


def test_batch_norms_of_the_full_model_are_refused():
    model = nn.Sequential(nn.Linear(9, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    plan = Plan.from_rules(model, {"0": Out("h"), "1": Out("h"), "3": In("h")})
    with pytest.raises(ValueError, match="1 is a batch norm"):
        federated(THREE, MadeSites(), model=model, plan=plan)


def test_a_site_needs_data_and_a_session_of_its_own():
    given = arguments(THREE, loss_fn=F.cross_entropy)
    with pytest.raises(ValueError, match="AtSite"):
        Site(Session(**given), blobs(3), number=0)
    session = Session(**arguments(THREE, loss_fn=F.cross_entropy, runtime=AtSite()))
    with pytest.raises(ValueError, match="split for 2 sites"):
        Site(session, blobs(2), number=0)
    with pytest.raises(ValueError, match="number=3"):
        Site(session, blobs(3), number=3)


def test_the_example_of_a_server_is_no_data():
    x, y = torch.zeros(4, 9), torch.zeros(4, dtype=torch.int64)
    data = OnSites(3, (x, y))
    assert [len(batch) for _, batch in data.batches(2, 5, 3)] == [4, 4, 4]
    assert data.sample(1, 2).shape == (2, 9)


def test_only_what_sites_need_is_served():
    """Not Flower's functions that start runs, install code or hand out results; and with keys nobody registers one."""
    routes = {found.route.path for found in iter_route_contexts(Fleet()._app().routes)}
    assert any(path.endswith("/pull-messages") for path in routes)
    assert all(path.startswith("/v1/fleet/") for path in routes)
    state = Fleet([b"key"]).state
    with pytest.raises(FlowerError):
        fleet_handlers.register_node(RegisterNodeFleetRequest(public_key=b"other"), state, enable_supernode_auth=True)
    assert Fleet([b"key"])._app().state.enable_supernode_auth
