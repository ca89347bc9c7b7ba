"""A site's part of Flower's protocol: one message after the other, in this process, which stays warm.

Flower's own SuperNode starts a process per message and looks for messages every three seconds. It also runs the code
that the server sends it; here only the code that is at the site runs.
"""

import traceback
import warnings
from typing import Any, cast

from flwr.app import Context, Error, Message
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)

from skerry.federated.site import CannotBegin


def answer_one(client: Any, node: Node, app: ClientApp, context: Context) -> bool:
    """Answer the next message for this site; return whether there was one.

    Args:
        client: of the fleet; Flower's ``FleetHttpClient``, or one like it.
        node: this site's.
        app: what answers.
        context: of this site.

    Raises:
        CannotBegin: the site cannot make its part of the training. The server knows that it takes no part.
    """
    response = client.PullMessages(PullMessagesRequest(node=node))
    if not response.messages_list:
        return False
    head, tree = message_from_proto(response.messages_list[0]), response.message_object_trees[0]
    run, number = head.metadata.run_id, head.metadata.message_id
    ids = [each.object_id for each in iterate_object_tree(tree)]
    contents = pull_objects(ids, make_pull_object_fn_protobuf(client.PullObject, node, run))
    client.ConfirmMessageReceived(ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=number))
    message = cast(Message, inflate_object_from_contents(number, contents))
    message.metadata.__dict__["_message_id"] = number
    try:
        reply = app(message, context)
    except Exception as error:  # the site's log has the rest, which may tell of its data
        told = f"{type(error).__name__} at the site, see its log"
        _send(client, node, Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=told), reply_to=message))
        if isinstance(error, CannotBegin):
            raise
        traceback.print_exc()
    else:
        try:
            _send(client, node, reply)
        except ObjectPushError:  # the connection is good: the next message is another matter
            warnings.warn("the server did not take what this site sent; its log says why", stacklevel=2)
    return True


def _send(client: Any, node: Node, reply: Message) -> None:
    run = reply.metadata.run_id
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        request = PushMessagesRequest(
            node=node,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
            clientapp_runtime_list=[0.0],
        )
        response = client.PushMessages(request)
        push_objects(
            get_all_nested_objects(reply),
            make_push_object_fn_protobuf(client.PushObject, node, run, response.session_id),
            object_ids_to_push=set(response.objects_to_push),
        )
