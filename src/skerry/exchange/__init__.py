"""The exchange: which elements move between workers after a round. Every process derives it before a byte is sent.

Between rounds every element of the full model is in one of two places: in the subnets of the workers that hold all its
units or, if no worker does, with its *owner*, a fixed worker that stores it. Only an element of two dealt dims (or of a
block and a dealt dim) can be in no subnet, unless the partition leaves units unassigned (``plan.may_be_unassigned``).
The owner follows from the element's index along the tensor's first dealt dim: worker w owns the w-th of n equal runs.
With H the holders of an element now and H' those in the next round:

    one holder          it sends the element to each new holder, H' - H, or to its owner if H' is empty
    no holder           the owner sends the element to each new holder
    several holders     one of them, the collector, receives it from the others and sends the mean to H'

What stays where it is does not move. The collectors of a set of elements are all its holders, each for an equal part,
so a tensor that every worker holds costs as much as in a ring all-reduce: each sends 2 (n - 1) / n of its size.

``owners.py`` says who owns what, ``moves.py`` what changes holders, ``routes.py`` who sends it to whom and how many
bytes that is, ``gathering.py`` how a whole tensor is collected for evaluation, export and checkpoints.
"""

from skerry.exchange.routes import traffic

__all__ = ["traffic"]
