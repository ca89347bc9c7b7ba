"""Independent subnet training of one hidden layer converges, up to a floor that one worker does not have.

p workers, categorical masks (each unit has one holder), tau local steps; u_k the full network's outputs times 1/p:

    E ||y - u_k||^2 <= (1/2 + 1/2 (1 - eta lambda_0 / 2)^tau)^k C^2 n + O(tau (p-1)^2 n^3 d / (lambda_0^2 m)),

with ||y - u_0||^2 at most C^2 n. The floor is 0 at p = 1, grows at most as (p-1)^2, and falls at least as 1/m. Its
constant is not given, so exponents are checked: an O() is a bound at every p and m only if the floor grows no faster
in p - 1 and falls no slower in m.

Source: Liao, Kyrillidis, 2022, arXiv 2112.02668, theorem 7 (from a summary).

Differs from the paper: units are dealt by ``Disjoint``, in equal numbers, and by ``Categorical`` for comparison; eta is
1/2 over lambda_max(H_infinity / p), above the paper's O(lambda_0 / n^2). C^2 n is replaced by ||y - u_0||^2, which is
smaller.
"""

from collections.abc import Callable, Sequence

from skerry.experiments.theory.frame.fit import exponent, mean, numbers
from skerry.experiments.theory.frame.masks import Categorical
from skerry.experiments.theory.frame.rates import at_rate, error_panel, floors, settled
from skerry.experiments.theory.frame.shallow import limit_kernel, shallow
from skerry.experiments.theory.frame.simulate import Trace, extremes, run
from skerry.experiments.theory.frame.verdict import Finding, Panel, estimated
from skerry.partitions.assignment import Partition
from skerry.partitions.disjoint import Disjoint


def check(
    *,
    seed: int = 0,
    repeats: int = 5,
    width: int = 500,
    widths: Sequence[int] = (250, 500, 1000, 2000),
    workers: Sequence[int] = (2, 3, 5, 9),
    local: int = 5,
    num_rounds: int = 18,
    step: float = 0.5,
) -> Finding:
    """Measure rate and floors over ``repeats`` problems.

    Args:
        width: of the nets for different numbers of ``workers``.
        widths: of the nets for the middle number of workers; too small ones break the assumption.
        step: eta in units of 1 / lambda_max; a value above 2 breaks the assumption.
    """

    def traces(m: int, p: int, deal: Callable[[int, int], Partition] = Disjoint) -> tuple[list[Trace], list[float]]:
        found, rates = [], []
        for s in range(seed, seed + repeats):
            problem = shallow(seed=s, width=m)
            low, high = (value / p for value in extremes(limit_kernel(problem.x)))
            eta = step / high
            found.append(run(problem, deal(p, s), step=eta, local=local, num_rounds=num_rounds))
            rates.append(0.5 + 0.5 * (1 - eta * low / 2) ** local)
        return found, rates

    middle = workers[len(workers) // 2]
    alone = traces(width, 1)
    by_workers = {p: traces(width, p) for p in workers}
    by_width = {m: by_workers[middle][0] if m == width else traces(m, middle)[0] for m in widths}
    drawn, _ = traces(width, middle, Categorical)

    floors_p = floors([by_workers[p][0] for p in workers])
    floors_m = floors([by_width[m] for m in widths])
    in_p = exponent(numbers([p - 1 for p in workers]), floors_p)
    in_m = exponent(numbers(widths), floors_m)
    of_drawn = mean((floors([drawn])[:, 0] / floors_p[:, workers.index(middle)]).log())
    return Finding(
        source="arXiv 2112.02668, theorem 7",
        verdicts=[
            at_rate("p = 1", *alone, floor=False),
            *(at_rate(f"p = {p}", *by_workers[p]) for p in workers),
            estimated("floor against (p-1): exponent", "<", 2.0, in_p, exponent=True),
            estimated("floor against (p-1): grows", ">", 0.0, in_p),
            estimated(f"p = {middle}: floor against m, exponent", "<", -1.0, in_m, exponent=True),
            settled([*(found for found, _ in by_workers.values()), *by_width.values()]),
        ],
        panels=[
            error_panel(
                f"{width} units, {local} local steps, {repeats} problems",
                {f"p = {p}": found for p, (found, _) in {1: alone, **by_workers}.items()},
            ),
            Panel(
                "floor",
                "p - 1, or m / 1000",
                "squared error",
                {
                    f"p, exponent {in_p.value:.2f}": ([p - 1 for p in workers], floors_p.mean(0)),
                    f"m, exponent {in_m.value:.2f}": ([m / 1000 for m in widths], floors_m.mean(0)),
                },
                log="xy",
            ),
        ],
        notes=[
            f"each unit drawn by itself has a floor exp({of_drawn.value:.2f} ± {of_drawn.margin:.2f}) times that of "
            f"equal shares, p = {middle}",
            "the floor's constant is not given in what we have of the paper: its size cannot be checked",
        ],
    )
