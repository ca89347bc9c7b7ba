"""Flower's state of messages under way, in memory: with a bound on what a site may send, and without leftovers.

A reply that is refused, or of which the rest will never come, is known here at once: nobody has to wait for it.
"""

from itertools import islice

from flwr.app import Message
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink.federation import NoOpFederationManager

from skerry.federated.messages import CutOff, Refused

_MORE_BYTES, _MORE_OBJECTS = 2**16, 8
"""A reply is as large as the message that it answers, but for these: a reason, Flower's heads, records."""


class Link(InMemoryLinkState):  # type: ignore[misc]  # its class is not known to the type checker
    """Flower's state. A reply larger than expected is refused before anything of it is stored.

    A site answers one message after the other. So if it asks for the next one, which it does first when it has
    connected again, what it has not answered as a whole is cut off.
    """

    def __init__(self) -> None:
        super().__init__(NoOpFederationManager(), InMemoryObjectStore())
        self._left: dict[str, int] = {}  # message -> bytes that may still come as its reply
        self._answers: dict[str, str] = {}  # session of an upload -> message
        self._refused: dict[str, Refused] = {}  # message -> why its reply is not taken

    def expect(self, message: str, num_bytes: int) -> None:
        """Allow a reply of ``num_bytes``, and little more, to a message that is about to be sent."""
        self._left[message] = num_bytes + _MORE_BYTES

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """Store a message, and note which objects are to come."""
        with self.lock:
            stored, missing = False, list[str]()
            asked = message.metadata.reply_to_message_id
            wrong = self._wrong(message, object_tree) if asked else ""
            if not wrong:
                try:
                    stored, missing = super().store_message_and_object_tree(message, object_tree, session_id)
                except ValueError:  # the name of a part is none
                    wrong = "a part of it is not what its head says"
            if not stored:
                self._cleanup_push_session(session_id, cleanup_messages=False)
                to = self.message_ins_store.get(asked)
                if to is not None and to.metadata.dst_node_id == message.metadata.src_node_id:
                    self._refuse(asked, Refused(wrong or "it is no reply to what the site was sent, or one more"))
            elif asked:
                self._answers[session_id] = asked
            return stored, missing

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """Store an object that is to come; return whether it was."""
        with self.lock:
            asked, num_bytes = self._answers.get(session_id), len(object_content)
            if not session_id or asked in self._refused:
                return False
            if asked is not None and num_bytes > self._left.get(asked, 0):
                self._refuse(asked, Refused("it is larger than what the site was sent"))
                return False
            stored: bool = super().store_object(run_id, session_id, object_id, object_content)
            if asked is not None:
                self._left[asked] = self._left.get(asked, 0) - num_bytes * stored
                if session_id in self._object_push_sessions and not stored:
                    self._refuse(asked, Refused("a part of it is not what its head says"))
            return stored

    def get_object(self, run_id: int, object_id: str) -> bytes | None:
        """Return an object."""
        with self.lock:  # before Flower's other lock, as everywhere: here Flower would take them the other way round
            found: bytes | None = super().get_object(run_id, object_id)
            return found

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """Return what a node has not been given yet."""
        with self.lock:
            self._cut_off(node_id)
            found: list[Message] = super().get_message_ins(node_id, limit, run_id=run_id)
            return found

    def is_arriving(self, message: str) -> bool:
        """Return whether parts of the reply are still to come: looking for it would wait for them.

        Raises:
            Refused: it is not taken, or is cut off; then nothing of it is left here.
        """
        with self.lock:
            asked, half = self.message_ins_store.get(message), self._is_half(message)
            node = None if asked is None else self.nodes.get(asked.metadata.dst_node_id)
            if half and asked is not None:
                until = asked.metadata.created_at + asked.metadata.ttl
                if node is None or now().timestamp() >= min(until, node.online_until):
                    self._refuse(message, CutOff("its upload stopped halfway"))
            if message in self._refused:
                refused = self._refused.pop(message)
                self.forget({message})
                raise refused
            return half

    def forget(self, messages: set[str]) -> None:
        """Free messages that nobody waits for any more, their replies, and objects of no message."""
        with self.lock, self._lock_object_push_sessions:
            self.delete_messages(messages)
            live = self.message_ins_store.keys() | self.message_res_store.keys()
            for number, session in list(self._object_push_sessions.items()):
                if session.root_object_ids and live.isdisjoint(session.root_object_ids):
                    self._cleanup_push_session(number, cleanup_messages=False)
            roots = [each for each, entry in self.object_store.store.items() if not entry.ref_count]
            for each in set(roots) - live:
                self.object_store.delete(each)
            self._left = {each: left for each, left in self._left.items() if each in live}
            self._answers = {each: m for each, m in self._answers.items() if each in self._object_push_sessions}
            self._refused = {each: refused for each, refused in self._refused.items() if each in live}

    def _is_half(self, message: str) -> bool:
        """Return whether there is a reply of which parts are missing."""
        reply = self.message_ins_id_to_message_res_id.get(message)
        if reply is None:
            return False
        try:
            parts = iterate_object_tree(self.object_store.get_object_tree(reply))
        except NoObjectInStoreError:
            return True
        return not all(self.object_store.get(part.object_id) for part in parts)

    def _cut_off(self, node: int) -> None:
        """Refuse what was given to a node, and is not answered as a whole."""
        for message, asked in self.message_ins_store.items():
            if asked.metadata.dst_node_id == node and asked.metadata.delivered_at:
                half = message in self.message_ins_id_to_message_res_id
                self._refuse(message, CutOff("its upload stopped halfway" if half else "it went on without a reply"))

    def _refuse(self, message: str, why: Refused) -> None:
        """Note that the reply to a message is not taken, unless all of it is here; the first reason stays."""
        if message not in self.message_ins_id_to_message_res_id or self._is_half(message):
            self._refused.setdefault(message, why)

    def _wrong(self, reply: Message, tree: ObjectTree) -> str:
        """Return what is wrong with a reply: it has no more text and objects than expected, and is what they are of."""
        asked = reply.metadata.reply_to_message_id
        if asked in self._refused:
            return "its reply was refused before"
        texts = [*vars(reply.metadata).values(), reply.error.reason if reply.has_error() else ""]
        if sum(len(text) for text in texts if isinstance(text, str)) > _MORE_BYTES:
            return "its text is too long"
        most = _MORE_OBJECTS + self._left.get(asked, 0) // FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
        if next(islice(iterate_object_tree(tree), most, None), None) is not None:
            return "it has more parts than what the site was sent"
        return "" if tree.object_id == reply.metadata.message_id else "its head is that of another message"
