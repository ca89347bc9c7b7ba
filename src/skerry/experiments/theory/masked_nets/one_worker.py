"""One worker that holds everything does gradient descent, and so do several that hold the same.

    W_{k+1} = W_k - eta * grad (1/2) ||y - f(W_k)||^2,
    grad_r = m^(-1/2) a_r sum_i (f(x_i) - y_i) 1{<w_r, x_i> > 0} x_i,

written out by hand here and compared with rounds of the library. With keep = 1 all Bernoulli masks are full, and the
mean of equal pieces is that piece.

Source: the case p = 1 (xi = 1) of Liao, Kyrillidis, 2022, arXiv 2112.02668, algorithm 1.
"""

import torch
from torch import Tensor

from skerry.experiments.theory.frame.masks import Bernoulli
from skerry.experiments.theory.frame.shallow import limit_kernel, shallow
from skerry.experiments.theory.frame.simulate import Problem, error, extremes, run
from skerry.experiments.theory.frame.verdict import Finding, Verdict, over_rounds
from skerry.partitions.disjoint import Disjoint


def check(
    *, seed: int = 0, width: int = 512, local: int = 5, num_rounds: int = 8, workers: int = 3, keep: float = 1.0
) -> Finding:
    """Compare the weights after all rounds.

    Args:
        workers: the number of Bernoulli masks.
        keep: the probability that a mask has a unit; a value below 1 breaks the assumption.
    """
    by_hand = shallow(seed=seed, width=width)
    step = 0.5 / extremes(limit_kernel(by_hand.x))[1]
    ones = torch.ones(width, dtype=torch.float64)
    errors = [error(by_hand, ones)]
    for _ in range(num_rounds):
        for _ in range(local):
            descend_(by_hand, step)
        errors.append(error(by_hand, ones))
    alone, copies = shallow(seed=seed, width=width), shallow(seed=seed, width=width)
    one = run(alone, Disjoint(1, seed), step=step, local=local, num_rounds=num_rounds)
    several = run(copies, Bernoulli(workers, keep, seed), step=step, local=local, num_rounds=num_rounds)
    return Finding(
        source="arXiv 2112.02668, algorithm 1 with one full mask",
        verdicts=[
            Verdict("one worker: distance of weights from gradient descent's", "<=", 1e-12, _apart(alone, by_hand)),
            Verdict(f"{workers} workers with full masks: the same", "<=", 1e-12, _apart(copies, by_hand)),
        ],
        panels=[
            over_rounds(
                f"{local} local steps per round",
                "squared error",
                {
                    "gradient descent by hand": errors,
                    "one worker": one.errors,
                    f"{workers} workers, keep {keep:g}": several.errors,
                },
            )
        ],
    )


@torch.no_grad()
def descend_(problem: Problem, step: float) -> None:
    """Take one step of gradient descent on (1/2) ||y - f(x)||^2, written out."""
    w, a = _weights(problem), problem.model.get_parameter("out.weight")[0]
    before = problem.x @ w.T
    residual = before.clamp(min=0) @ a - problem.y
    w -= step * a[:, None] * (((before > 0) * residual[:, None]).T @ problem.x)


def _weights(problem: Problem) -> Tensor:
    return problem.model.get_parameter("hidden.weight").detach()


def _apart(a: Problem, b: Problem) -> float:
    return float((_weights(a) - _weights(b)).abs().max())
