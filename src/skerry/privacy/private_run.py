"""What ``Private`` means for the data and the steps of a training, and the account of each owner of data.

The owner of samples is a worker or, where there are clients, a client.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import nn

from skerry.privacy.accountant import History, epsilon, noise_for
from skerry.privacy.gradient import PrivateGradient
from skerry.privacy.noise import noise_of
from skerry.privacy.private import Private
from skerry.randomness import seed_of

_STEPS = "private steps of owner "  # of ``State.observed``: noise multiplier, sample rate, steps, and so on


@dataclass(frozen=True, kw_only=True)
class PrivateRun:
    """How a training is private. ``of`` makes it, for ``Session``; ``train`` does so by itself.

    Attributes:
        given: what was asked for.
        data: each owner's samples, drawn as the accountant assumes.
        noise: noise multiplier of each owner; empty before the session has begun.
    """

    given: Private
    data: Any
    noise: tuple[float, ...] = ()

    @classmethod
    def of(cls, given: Private, data: Any) -> Self:
        """Return the run of ``given`` on ``data``.

        Args:
            given: what is asked for.
            data: ``Shards``, or data of your own with a method ``poisson(seed)`` (``Shards.poisson``) and a
                list ``sample_rates``.

        Raises:
            ValueError: samples cannot be drawn independently of each other, or somebody has a sample twice.
        """
        if not isinstance(given, Private):
            raise ValueError(f"privacy: got {type(given).__name__}, expected skerry.Private(...)")
        if not hasattr(data, "poisson"):
            raise ValueError(
                f"privacy: {type(data).__name__} cannot draw each sample independently of the others, which the "
                "accountant assumes; use skerry.Shards"
            )
        return cls(given=given, data=data.poisson(given.seed))

    @property
    def is_secret(self) -> bool:
        """Whether a round that is trained again gets other noise, so that its steps count again."""
        return self.given.seed is None

    def with_noise(self, observed: Mapping[str, list[float]], steps: Sequence[int]) -> Self:
        """Return the run with the noise of each owner for ``steps`` more steps, after those ``observed``."""
        z, target, delta = self.given.noise_multiplier, self.given.target_epsilon, self.given.delta
        if target is None:
            assert z is not None
            return replace(self, noise=(z,) * len(steps))
        history = [_history(observed, owner) for owner in range(len(steps))]
        rates = self.data.sample_rates
        found = (noise_for(target, delta, *each) for each in zip(rates, steps, history, strict=True))
        return replace(self, noise=tuple(found))

    def gradient(self, net: nn.Module, owner: int, round: int) -> PrivateGradient:
        """Return the private gradient of ``net``, which is trained on the samples of ``owner`` in ``round``."""
        seed = self.given.seed
        return PrivateGradient(
            net,
            max_grad_norm=self.given.max_grad_norm,
            noise_multiplier=self.noise[owner],
            batch_size=self.data.batch_size,
            noise=noise_of() if seed is None else noise_of(seed, "noise", owner, round),
        )

    def seed(self, owner: int, round: int) -> int:
        """Return the seed of dropout and the like: which samples get which mask must be as secret as their choice."""
        seed = self.given.seed
        return secrets.randbits(63) if seed is None else seed_of(seed, "local", owner, round)

    def note(self, observed: dict[str, list[float]], owner: int, steps: int, noise: float | None = None) -> None:
        """Note ``steps`` more steps on the samples of ``owner``."""
        now = self.noise[owner] if noise is None else noise, self.data.sample_rates[owner]
        *before, last = _history(observed, owner) or [(*now, 0)]
        parts = [*before, (*now, last[2] + steps)] if last[:2] == now else [*before, last, (*now, steps)]
        observed[f"{_STEPS}{owner}"] = [float(x) for part in parts for x in part]

    def note_repeated(self, observed: dict[str, list[float]], steps: Sequence[int]) -> None:
        """Note steps that a training before this one may have taken, with the noise that it had."""
        for owner, num in enumerate(steps):
            history = _history(observed, owner)
            self.note(observed, owner, num, history[-1][0] if history else None)

    def epsilon(self, observed: Mapping[str, list[float]]) -> tuple[float, ...]:
        """Return the epsilon of each owner, at ``given.delta``, after the steps ``observed``."""
        return tuple(epsilon(_history(observed, owner), self.given.delta) for owner in range(len(self.noise)))


def is_noted(observed: Mapping[str, list[float]]) -> bool:
    """Return whether any private steps are ``observed``."""
    return any(name.startswith(_STEPS) for name in observed)


def _history(observed: Mapping[str, list[float]], owner: int) -> History:
    flat = observed.get(f"{_STEPS}{owner}", [])
    return tuple((z, q, int(steps)) for z, q, steps in zip(flat[::3], flat[1::3], flat[2::3], strict=True))
