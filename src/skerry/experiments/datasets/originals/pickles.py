"""Reads the pickles in which the Planetoid graphs are published, as data: nothing in them is imported or called.

``pickle.load`` calls what a file names. Here ``pickletools`` splits a file into its operations, and only those are
carried out that build numbers, texts, tuples, lists and dicts. Where a pickle would call something, ``Call`` keeps the
name and the arguments, and ``array``, ``csr_matrix`` and ``lists`` make what we know of it. The files were written by
Python 2 in protocol 2; other operations are refused.
"""

import pickletools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False)
class Call:
    """What a pickle asks for: the name of a class or function, arguments, the object's state, and its items."""

    name: str
    arguments: Any = None
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


def parse(pickle: bytes) -> Any:
    """Return what a pickle describes, with a ``Call`` for each object of a class.

    Raises:
        ValueError, IndexError, KeyError: it is damaged, or has an operation that is not needed here.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def pop(num: int | None = None) -> list[Any]:
        """Take ``num`` values from the stack, or all after the last mark."""
        start = marks.pop() if num is None else len(stack) - num
        if start < 0:
            raise IndexError("too few values")
        values = stack[start:]
        del stack[start:]
        return values

    for operation, argument, _ in pickletools.genops(pickle):
        match operation.name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                marks.append(len(stack))
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "SHORT_BINSTRING" | "BINSTRING" | "BINUNICODE"
            ):
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation.name])
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(operation.name[-1]) if operation.name[-1].isdigit() else 0)))
            case "TUPLE":
                stack.append(tuple(pop()))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND" | "APPENDS":
                values = pop(1 if operation.name == "APPEND" else None)
                _last(stack, list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = pop(2 if operation.name == "SETITEM" else None)
                target = stack[-1].items if isinstance(stack[-1], Call) else _last(stack, dict)
                target.update(zip(values[::2], values[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(Call(str(argument)))
            case "REDUCE" | "NEWOBJ":
                called, arguments = pop(2)
                stack.append(Call(called.name if isinstance(called, Call) else "", arguments))
            case "BUILD":
                (state,) = pop(1)
                _last(stack, Call).state = state
            case other:
                raise ValueError(f"operation {other}, which such files do not have")
    (result,) = stack
    return result


def _last(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise ValueError(f"a {type(stack[-1]).__name__}, expected a {kind.__name__}")
    return stack[-1]


def array(value: Any) -> NDArray[Any]:
    """Return the numpy array that ``value`` describes.

    Raises:
        ValueError: it describes something else, or an array of other than integers and floats.
    """
    call = _call(value, "numpy.core.multiarray _reconstruct")
    _, shape, dtype, column_major, content = call.state
    return _values(dtype, content).reshape(shape, order="F" if column_major else "C")


def csr_matrix(value: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], tuple[int, int]]:
    """Return data, indices, indptr and shape of the matrix that ``value`` describes.

    Raises:
        ValueError: it describes something else, or its parts do not fit each other.
    """
    state = _call(value, "scipy.sparse.csr csr_matrix").state
    data, indices, indptr = (array(state[part]) for part in ("data", "indices", "indptr"))
    rows, columns = (_number(size) for size in state["_shape"])
    lengths = np.diff(indptr)
    fits = indptr.shape == (rows + 1,) and indptr[0] == 0 and indptr[-1] == len(indices) == len(data)
    if not (fits and (lengths >= 0).all() and ((indices >= 0) & (indices < columns)).all()):
        raise ValueError("a sparse matrix whose parts do not fit each other")
    return data, indices, indptr, (rows, columns)


def lists(value: Any) -> dict[int, list[int]]:
    """Return the dict, or ``defaultdict``, of lists of integers that ``value`` describes.

    Raises:
        ValueError: it describes something else.
    """
    found = value if isinstance(value, dict) else _call(value, "collections defaultdict").items
    return {_number(key): [_number(item) for item in items] for key, items in found.items()}


def _number(value: Any) -> int:
    """Return an integer, plain or of numpy."""
    if isinstance(value, Call):
        dtype, content = _call(value, "numpy.core.multiarray scalar").arguments
        (value,) = _values(dtype, content)
    if not isinstance(value, int | np.integer):
        raise ValueError(f"a {type(value).__name__}, expected an integer")
    return int(value)


def _values(dtype: Any, content: str) -> NDArray[Any]:
    code = _call(dtype, "numpy dtype").arguments[0]
    if code not in ("i4", "i8", "f4", "f8") or dtype.state[1] != "<":
        raise ValueError(f"numpy values of type {code!r}, expected integers or floats")
    return np.frombuffer(content.encode("latin-1"), f"<{code}")


def _call(value: Any, name: str) -> Call:
    if not isinstance(value, Call) or value.name != name:
        raise ValueError(f"{value.name if isinstance(value, Call) else type(value).__name__!r}, expected {name}")
    return value
