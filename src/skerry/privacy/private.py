"""What a user asks for: how private training is to be."""

import math
from dataclasses import dataclass

from skerry.whole_number import check_whole_number


@dataclass(frozen=True, kw_only=True)
class Private:
    """Trains with differential privacy: what leaves a worker tells little about any one of its samples (DP-SGD).

    In each local step a worker takes each of its N samples with probability q = B / N, B the batch size, and goes down

        (1 / B) (sum over the samples taken of g_i min(1, C / |g_i|) + z C e),   e normal with mean 0 and variance 1,

    where g_i is the gradient of one sample's loss. All steps together are (epsilon, delta) differentially private with
    respect to adding or leaving out one sample. docs/private.md says what that protects, and what it does not.

    Args:
        noise_multiplier: z. Either this or ``target_epsilon``.
        target_epsilon: choose z for each worker so that all of its steps together reach this epsilon, and not more.
        max_grad_norm: C.
        delta: well below one over the number of a worker's samples.
        seed: None: noise, and the choice of samples, come from the operating system's secure generator, and no run is
            like another. A number makes both repeatable for tests; whoever knows it can undo the noise.

    Raises:
        ValueError: a value out of range, or not one of ``noise_multiplier`` and ``target_epsilon``.

    References: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang: Deep Learning with Differential Privacy, CCS
    2016, arXiv 1607.00133 (algorithm 1). Mironov, Talwar, Zhang: Rényi Differential Privacy of the Sampled Gaussian
    Mechanism, 2019, arXiv 1908.10530.

    Example:
        >>> Private(target_epsilon=4.0).delta
        1e-05
    """

    noise_multiplier: float | None = None
    target_epsilon: float | None = None
    max_grad_norm: float = 1.0
    delta: float = 1e-5
    seed: int | None = None

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError(
                f"privacy: noise_multiplier={self.noise_multiplier} and target_epsilon={self.target_epsilon}, expected "
                "one of the two"
            )
        for name, least, below in (
            ("noise_multiplier", 0.0, math.inf),
            ("target_epsilon", 1e-3, math.inf),
            ("max_grad_norm", 1e-12, math.inf),
            ("delta", 1e-100, 1.0),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
                raise ValueError(f"privacy: {name}={value!r}, expected a number from {least:g} to below {below:g}")
        if self.seed is not None:
            check_whole_number("privacy: seed", self.seed, 0)
