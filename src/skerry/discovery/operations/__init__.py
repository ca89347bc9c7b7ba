"""Operations: for each kind of ATen operation, a rule that says what it demands of labels.

A rule is right if the operation, run on narrow tensors, gives the narrow result. Everything an element of the result is
computed from must be held wherever that element is held, or (in a sum over weights) must be zero where it is not held.
An operation without a rule pins all labels it touches, so nothing that passes through it is dealt out.

Each file has the rules of one kind of operation; ``rules.py`` has the table of all of them.
"""
