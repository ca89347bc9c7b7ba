"""Every local step of every subnet lowers its own error: masked nets train as networks of their own.

If the width is large enough and eta small enough, then with high probability, for all rounds k, subnets l, steps t,

    ||y - u^l_{k,t+1}||^2 <= (1 - eta lambda_0 / 2) ||y - u^l_{k,t}||^2,   lambda_0 = lambda_min(xi H_infinity).

Source: Liao, Kyrillidis, 2022, arXiv 2112.02668, theorem 2 (from a summary). There eta = O(lambda_0 / n^2) with a
constant that we do not know. 1/2 over the largest eigenvalue is far above it; the claim is checked for both.
"""

from skerry.experiments.theory.frame.masks import Bernoulli
from skerry.experiments.theory.frame.rates import error_panel
from skerry.experiments.theory.frame.shallow import limit_kernel, shallow
from skerry.experiments.theory.frame.simulate import Aggregate, extremes, run
from skerry.experiments.theory.frame.verdict import Finding, Verdict
from skerry.merge.aggregate import aggregate_
from skerry.partitions.assignment import Partition
from skerry.partitions.disjoint import Disjoint


def check(
    *,
    seed: int = 0,
    width: int = 1000,
    workers: int = 4,
    local: int = 5,
    num_rounds: int = 20,
    step: float = 0.5,
    aggregate: Aggregate = aggregate_,
) -> Finding:
    """Find the local step that lowered a subnet's error least.

    Args:
        width: hidden units of the full network; too few break the assumption.
        step: eta in units of 1 / lambda_max(xi H_infinity); a value above 2 breaks the assumption.
        aggregate: the aggregation; one that zeroes units breaks the assumption.
    """
    keep = 1 / workers
    x = shallow(seed=seed, width=width).x
    low, high = (keep * value for value in extremes(limit_kernel(x)))
    steps = {"": step / high, ", eta = lambda_0/n^2": low / len(x) ** 2}
    partitions: dict[str, Partition] = {
        "disjoint": Disjoint(workers, seed),
        "Bernoulli": Bernoulli(workers, keep, seed),
    }
    verdicts, traces = [], {}
    for size, eta in steps.items():
        for name, partition in partitions.items():
            problem = shallow(seed=seed, width=width)
            trace = run(problem, partition, step=eta, local=local, num_rounds=num_rounds, aggregate=aggregate)
            claim = f"{name} masks{size}: least decrease of a local step over eta lambda_0 / 2"
            decrease = (1 - trace.worst_local) / (eta * low / 2)
            verdicts.append(Verdict(claim, ">", 1.0, decrease))
            traces[name + size] = [trace]
    return Finding(
        source="arXiv 2112.02668, theorem 2",
        verdicts=verdicts,
        panels=[error_panel(f"full network, {workers} subnets", traces)],
    )
