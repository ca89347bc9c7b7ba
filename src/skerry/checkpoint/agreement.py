"""What each process knows, told to all of them, so that they go on alike or end alike."""

import torch

from skerry.runtimes.runtime import Runtime


def texts_of_all(own: str, runtime: Runtime) -> list[str]:
    """Return the texts of all processes, by rank; every process must call it with its own."""
    mine, rank = own.encode(), runtime.rank
    lengths = torch.zeros(runtime.num_processes, dtype=torch.int64)
    lengths[rank] = len(mine)
    lengths = runtime.total(lengths)
    ends = lengths.cumsum(0).tolist()
    if not ends[-1]:
        return [""] * len(ends)
    row = torch.zeros(ends[-1], dtype=torch.uint8)
    row[ends[rank] - len(mine) : ends[rank]] = torch.tensor(list(mine), dtype=torch.uint8)
    told = bytes(runtime.total(row).tolist())
    return [told[begin:end].decode() for begin, end in zip([0, *ends], ends, strict=False)]


def first_text(own: str, runtime: Runtime) -> str:
    """Return the text of the first process that has one, empty if none has; every process must call it."""
    return next(filter(None, texts_of_all(own, runtime)), "")
