"""The exchange: what moves where between two rounds, known to every process before a byte is sent.

Between rounds every element of the full model is in one of two places: in the subnets of the workers that hold all its
units, or, if no worker does, with its *owner*, a fixed worker that stores it. Only an element of two dealt dims (or of
a block and a dealt dim) can be in no subnet, unless the partition leaves units unassigned (``plan.rests``). Its owner
follows from its index along the tensor's first dealt dim: worker w owns the w-th of n equal runs of it. With H the
holders of an element now and H' those in the next round:

    one holder          it moves straight to each new holder, H' - H; to its owner, if H' is empty
    no holder           its owner sends it to each new holder
    several holders     one of them, the collector, gets it from the others and passes the mean on to H'

What stays where it is does not move. The collectors of a set of elements are all its holders, each for an equal part,
so a tensor that everybody shares costs what a ring all-reduce does: 2 (n - 1) / n of its size for each worker.
"""

from skerry.exchange.routes import traffic

__all__ = [
    "traffic",
]
