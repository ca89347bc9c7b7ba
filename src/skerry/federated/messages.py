"""What the server and a site say to each other: a few numbers, and the tensors of a subnet as one array of bytes.

Flower's time per message grows with the number of its objects, so all tensors travel as one. The receiver knows which
tensors must come. It compares their names, types and shapes, and the number of bytes, before it makes any tensor.
Bytes are never unpickled, nor read by ``numpy.load``, which would believe the sizes that the bytes claim.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

_NUMBERS, _TENSORS, _PACKED = "numbers", "tensors", "packed"
_STYPE = "skerry.bytes"  # Flower does not read it

Number = str | int | float | bytes


_MOST_TEXT = 200
"""Characters of what an error says that are told and recorded: a site may send long ones."""


class Refused(ValueError):
    """A message that is not what was agreed; nothing of it is used."""


class CutOff(Refused):
    """A message of which the rest will never come, though its sender may do better next time."""


def written(numbers: Mapping[str, Number], tensors: Mapping[str, Tensor] | None = None) -> RecordDict:
    """Return the content of a message."""
    records: dict[str, Any] = {_NUMBERS: ConfigRecord(dict(numbers))}
    if tensors is not None:
        records[_NUMBERS]["header"] = _header(tensors)
        packed = b"".join(_bytes(tensors[name]) for name in sorted(tensors))
        records[_TENSORS] = ArrayRecord({_PACKED: Array("uint8", (len(packed),), _STYPE, packed)})
    return RecordDict(records)


def reason_of(message: Message) -> str:
    """Return the last line of what an error message says, or its code if it says nothing.

    It is cut, and what would not be shown as it is, as what steers a terminal, is escaped.
    """
    line = ((message.error.reason or "").strip() or f"code {message.error.code}").splitlines()[-1][:_MOST_TEXT]
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)[:_MOST_TEXT]


def read_numbers(content: RecordDict, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return the numbers of a message.

    Args:
        content: of the message.
        kinds: their types, by name.

    Raises:
        Refused: one is missing or of another type.
    """
    found = content.config_records.get(_NUMBERS) if isinstance(content, RecordDict) else None
    if found is None:
        raise Refused("the message has no numbers")
    for name, kind in kinds.items():
        if type(found.get(name)) is not kind:
            raise Refused(f"{name}: got {type(found.get(name)).__name__}, expected {kind.__name__}")
    return {name: found[name] for name in kinds}


def read_tensors(content: RecordDict, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a message.

    Args:
        content: of the message.
        like: what must come, by name; on any device.

    Raises:
        Refused: names, types, shapes or the number of bytes are others.
    """
    expected, num_bytes = _header(like), sum(tensor.nbytes for tensor in like.values())
    if read_numbers(content, {"header": str})["header"] != expected:
        raise Refused("names, types or shapes of the tensors are not those of the subnet")
    record = content.array_records.get(_TENSORS)
    array = None if record is None else record.get(_PACKED)
    if array is None or array.stype != _STYPE:
        raise Refused("the message has no tensors")
    if len(array.data) != num_bytes:
        raise Refused(f"tensors: {len(array.data)} bytes, expected {num_bytes}")
    buffer, begin, tensors = memoryview(bytearray(array.data)), 0, {}
    for name, tensor in sorted(like.items()):
        tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype)  # of its own: aligned in memory as any other
        if tensor.nbytes:
            flat = torch.frombuffer(buffer, dtype=torch.uint8, count=tensor.nbytes, offset=begin)
            tensors[name].view(-1).view(torch.uint8).copy_(flat)
        begin += tensor.nbytes
    return tensors


def _header(tensors: Mapping[str, Tensor]) -> str:
    """Return names, types and shapes as JSON, the same for the same tensors."""
    return json.dumps(
        [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in sorted(tensors.items())]
    )


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
