"""Generators: pure functions of their key."""

import torch

from skerry.randomness import generator, seed_of


def test_generators_depend_on_every_part_of_the_key_and_on_nothing_else():
    seeds = {seed_of(*key) for key in [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), ("0", "a"), (0,)]}
    assert len(seeds) == 6
    torch.manual_seed(5)
    a = torch.rand(3, generator=generator(1, "x"))
    torch.manual_seed(6)
    assert torch.equal(a, torch.rand(3, generator=generator(1, "x")))
