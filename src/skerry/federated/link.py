"""Flower's state of messages under way, in memory: with a bound on what a site may send, and without leftovers."""

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

_MORE_BYTES, _MORE_OBJECTS = 2**16, 8
"""A reply is as large as the message that it answers, but for these: a reason, Flower's heads, records."""


class Link(InMemoryLinkState):  # type: ignore[misc]  # its class is not known to the type checker
    """Flower's state. A reply larger than expected is refused before anything of it is stored."""

    def __init__(self) -> None:
        super().__init__(NoOpFederationManager(), InMemoryObjectStore())
        self._left: dict[str, int] = {}  # message -> bytes that may still come as its reply
        self._answers: dict[str, str] = {}  # session of an upload -> message

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
            if not asked or self._is_allowed(message, object_tree):
                stored, missing = super().store_message_and_object_tree(message, object_tree, session_id)
            if not stored:
                self._cleanup_push_session(session_id, cleanup_messages=False)
            elif asked:
                self._answers[session_id] = asked
            return stored, missing

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """Store an object that is to come; return whether it was."""
        with self.lock:
            asked, num_bytes = self._answers.get(session_id), len(object_content)
            if not session_id or (asked is not None and num_bytes > self._left.get(asked, 0)):
                return False
            stored: bool = super().store_object(run_id, session_id, object_id, object_content)
            if stored and asked is not None:
                self._left[asked] -= num_bytes
            return stored

    def is_arriving(self, message: str) -> bool:
        """Return whether parts of the reply are still to come: looking for it would wait for them."""
        with self.lock:
            asked = self.message_ins_store.get(message)
            reply = self.message_ins_id_to_message_res_id.get(message)
            node = None if asked is None else self.nodes.get(asked.metadata.dst_node_id)
            if asked is None or reply is None or node is None:
                return False
            until = min(asked.metadata.created_at + asked.metadata.ttl, node.online_until)
            try:
                parts = iterate_object_tree(self.object_store.get_object_tree(reply))
            except NoObjectInStoreError:
                return False
            return now().timestamp() < until and not all(self.object_store.get(part.object_id) for part in parts)

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

    def _is_allowed(self, reply: Message, tree: ObjectTree) -> bool:
        """Return whether a reply has no more text and objects than expected, and is what they are of."""
        texts = [*vars(reply.metadata).values(), reply.error.reason if reply.has_error() else ""]
        is_long = sum(len(text) for text in texts if isinstance(text, str)) > _MORE_BYTES
        most = (
            _MORE_OBJECTS + self._left.get(reply.metadata.reply_to_message_id, 0) // FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
        )
        is_large = next(islice(iterate_object_tree(tree), most, None), None) is not None
        return not is_large and not is_long and tree.object_id == reply.metadata.message_id
