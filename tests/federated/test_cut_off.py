"""Messages that are cut off, cannot be read, or say what they should not: who is asked again, and what is told."""

import warnings
from typing import Any

import pytest
from federation import STEPS, federated, joined, site
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from made_sites import Change, MadeSites

from skerry import ist
from skerry.federated import sites, trips
from skerry.federated.messages import written
from skerry.federated.sites import TooFewSites

pytestmark = pytest.mark.usefixtures("no_costs", "clock")
THREE = ist(3, local_steps=STEPS)


class Broken(ConfigRecord):
    """Numbers whose bytes are none."""

    __qualname__ = "ConfigRecord"

    def deflate(self) -> bytes:
        return add_header_to_object_body(object_body=b"\xff\xff", obj=self)


def broken(message: Message, reply: Message) -> Message:
    return Message(RecordDict({"numbers": Broken()}), reply_to=message)


def saying(differs: str) -> Change:
    return lambda message, reply: Message(written({"site": 0, "differs": differs}), reply_to=message)


def told_of_a_site(change: Change) -> list[str]:
    """Let a site say who it is, and look four times; return the warnings."""
    made, asked = MadeSites(), list[str]()
    made.join(lambda: site(THREE, 0), lambda m, r: (asked.append(m.metadata.message_type), change(m, r))[1])
    found = sites.Sites(made.grid, 3, {"optimizer": "sgd"}, job="", poll_s=0.05, ttl_s=600.0)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(4):
            found.look()
    assert not found.here
    assert asked == [sites.HELLO]
    return [str(each.message) for each in heard if "takes no part" in str(each.message)]


def test_a_site_whose_answer_cannot_be_read_is_told_of_once_and_not_asked_again():
    (told,) = told_of_a_site(broken)
    assert "it cannot be read" in told


def test_a_connection_that_fails_while_a_reply_is_read_is_no_fault_of_the_reply():
    made = MadeSites()
    node = made.join(lambda: site(THREE, 0))
    asked = trips.Trips[str](made.grid, 0.05)
    asked.send(node, sites.BYE, written({}), "bye", 60.0)

    def pull_messages(numbers: Any) -> Any:
        raise ConnectionError("of the server's own")

    made.grid.pull_messages = pull_messages
    with pytest.raises(ConnectionError, match="of the server's own"):
        list(asked.arrived())


def test_a_setting_is_named_only_if_the_server_has_it():
    """Else a site could write what it likes into the server's terminal."""
    (told,) = told_of_a_site(saying("optimizer"))
    assert "other settings: optimizer;" in told
    (told,) = told_of_a_site(saying("\x1b[2J" + "x" * 10**4))
    assert "other settings: one that is not known here;" in told
    assert told.isprintable()


@pytest.mark.filterwarnings("ignore:(round|the server did not take):UserWarning")
@pytest.mark.parametrize("num_rounds", [4, 6])
def test_a_network_that_cuts_off_all_replies_costs_rounds_and_ends_the_training_after_five(num_rounds):
    """Advice on code or learning rates would be wrong."""
    trains = [False]

    def change(message: Message, reply: Message) -> None:
        trains[0] = message.metadata.message_type == "train.subnet"

    made = joined(THREE, dict.fromkeys(range(3), change), num_rounds=num_rounds)
    push = made.client.PushObject

    def push_object(request: Any) -> Any:
        if trains[0]:
            raise ObjectPushError(request.object_id, request.run_id, request.session_id)
        return push(request)

    made.client.PushObject = push_object
    if num_rounds > 5:
        with pytest.raises(TooFewSites, match="no reply has come through in 5 rounds"):
            federated(THREE, made, num_rounds=num_rounds, max_bad_rounds=2)
        return
    ours = federated(THREE, made, num_rounds=num_rounds, max_bad_rounds=2)
    assert [record.refused for record in ours.history] == [(0, 1, 2)] * num_rounds
    assert "stopped halfway" in ours.history[-1].faults[1]


def test_a_site_that_did_not_get_the_end_is_told_again():
    made, heard = MadeSites(), list[str]()
    node = made.join(lambda: site(THREE, 0), lambda m, r: heard.append(m.metadata.message_type))
    pull, lost = made.client.PullMessages, [PullMessagesResponse()]

    def pull_messages(request: Any) -> Any:
        found = pull(request)
        return lost.pop() if found.messages_list and lost else found

    made.client.PullMessages = pull_messages
    sites.Sites(made.grid, 3, {}, job="", poll_s=0.05, ttl_s=600.0).dismiss()
    assert not lost
    assert heard == [sites.BYE]
    assert node in made.sites
