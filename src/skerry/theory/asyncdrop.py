"""AsyncDrop: masked clients that arrive late. Delays slow training down; masks, not delays, make the floor.

The server never waits. At step t a client arrives that was sent the masked network E steps ago, and is mixed in:

    W <- W (1 - M) + ((1 - alpha) W + alpha W_i) M,   W_i from tau local steps on M W_{t-E}, M Bernoulli with keep xi.

Checked, with lambda_0 = lambda_min(xi H_infinity) and u_t the full network's outputs times xi:

    E = 0:   E ||y - u_t||^2 <= (1 - eta alpha xi tau lambda_0 / 4)^t ||y - u_0||^2 + floor,   floor 0 at xi = 1;
    E > 0 and xi = 1: no floor either (a network that fits all data is left alone by every client), but slower;
    the floor grows with 1 - xi; errors before the floor grow with E.

The first line is theorem 3 of arXiv 2112.02668 with one mask a step (theta = xi) and a step damped by alpha.

Source: Dun, Hipolito, Jermaine, Dimitriadis, Kyrillidis: Efficient and Light-Weight Federated Learning via Asynchronous
Distributed Dropout, 2022, arXiv 2210.16105: the server's rule. Its theorem is for a one-hidden-layer CNN with bounded
delays; neither statement nor constants are in what we have of the paper, so directions are what can be checked, not its
floor's terms. Delays are constant here, and clients have all data.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from skerry.plan import named_tensors
from skerry.subnet import cuts, put_, take
from skerry.theory.fit import exponent, mean
from skerry.theory.masks import Bernoulli
from skerry.theory.rates import floors, later_over_earlier, mean_errors, over_rate
from skerry.theory.shallow import limit_kernel, shallow
from skerry.theory.simulate import Problem, Trace, extremes, outputs, trained
from skerry.theory.verdict import Curve, Finding, Panel, Verdict


def serve(
    problem: Problem, *, keep: float, delay: int, alpha: float, step: float, local: int, num_steps: int, seed: int
) -> Trace:
    """Let ``num_steps`` clients arrive, each ``delay`` steps late (the first ones as late as can be)."""
    partition = Bernoulli(1, keep, seed)
    sent: list[dict[str, Tensor]] = [_copy(problem)]
    found = [outputs(problem, keep)]
    for t in range(num_steps):
        units = partition.assign(problem.plan.axes, t).units(0)
        now = sent[-1]
        _load_(problem, sent[max(0, len(sent) - 1 - delay)])
        subnet, _ = trained(problem, units, step=step, local=local)
        _load_(problem, now)
        by_name = cuts(problem.plan, units)
        for name, tensor in named_tensors(problem.model).items():
            cut = by_name.get(name, ())
            assert cut is not None
            put_(tensor, (1 - alpha) * take(tensor, cut) + alpha * named_tensors(subnet)[name], cut)
        sent = [*sent[-delay:], _copy(problem)] if delay else [_copy(problem)]
        found.append(outputs(problem, keep))
    u = torch.stack(found)
    return Trace(u, (problem.y - u).square().sum(1), 0.0)


def check(
    *,
    seed: int = 0,
    repeats: int = 4,
    width: int = 300,
    keep: float = 0.75,
    delays: Sequence[int] = (0, 2, 8),
    drops: Sequence[float] = (0.02, 0.1, 0.5),
    alpha: float = 0.2,
    local: int = 5,
    num_steps: int = 64,
    step: float = 0.5,
) -> Finding:
    """Measure errors over ``repeats`` problems.

    Args:
        alpha: how much of a client is mixed in.
        step: eta in units of 1 / lambda_max; above 2 it breaks the assumption.
    """

    def traces(xi: float, delay: int) -> tuple[list[Trace], list[float]]:
        found, rates = [], []
        for s in range(seed, seed + repeats):
            problem = shallow(seed=s, width=width)
            low, high = (xi * value for value in extremes(limit_kernel(problem.x)))
            eta = step / high
            found.append(
                serve(
                    problem,
                    keep=xi,
                    delay=delay,
                    alpha=alpha,
                    step=eta,
                    local=local,
                    num_steps=num_steps,
                    seed=s,
                )
            )
            rates.append(1 - eta * alpha * xi * local * low / 4)
        return found, rates

    whole, late = traces(1.0, 0), traces(1.0, delays[-1])
    by_delay = {delay: traces(keep, delay) for delay in delays}
    of_drop = floors([traces(1 - drop, 0)[0] for drop in drops])
    in_drop = exponent(torch.tensor(drops, dtype=torch.float64), of_drop)
    early = num_steps // 8
    slower = mean(
        torch.stack([(b.errors[early] / a.errors[early]).log() for a, b in zip(whole[0], late[0], strict=True)])
    )
    falls = mean(later_over_earlier(late[0]))
    of_delay = floors([by_delay[delay][0] for delay in delays])
    higher = mean((of_delay[:, -1] / of_delay[:, 0]).log())
    shown = range(num_steps + 1)
    return Finding(
        source="arXiv 2210.16105; rate of arXiv 2112.02668, theorem 3",
        verdicts=[
            Verdict(
                claim="xi = 1, E = 0: worst error over rate^t, no floor",
                bound=1.0,
                measured=over_rate(*whole, floor=False),
            ),
            Verdict(
                claim=f"xi = {keep:g}, E = 0: worst error over rate^t plus the measured floor",
                bound=1.0,
                measured=over_rate(*by_delay[delays[0]]),
            ),
            Verdict(
                claim=f"xi = 1, E = {delays[-1]}: no floor, log of the error's last over its middle third",
                bound=0.0,
                measured=falls.value,
                margin=falls.margin,
                sense="<",
            ),
            Verdict(
                claim=f"delays slow down: log of error at E = {delays[-1]} over E = 0, step {early}",
                bound=0.0,
                measured=slower.value,
                margin=slower.margin,
                sense=">",
            ),
            Verdict(
                claim="floor grows with 1 - xi, exponent",
                bound=0.0,
                measured=in_drop.value,
                margin=in_drop.margin,
                sense=">",
            ),
        ],
        panels=[
            Panel(
                title=f"{width} units, alpha {alpha:g}, {local} local steps",
                xlabel="clients arrived",
                ylabel="squared error",
                curves=[
                    Curve("xi = 1, E = 0", shown, mean_errors(whole[0])),
                    Curve(f"xi = 1, E = {delays[-1]}", shown, mean_errors(late[0])),
                    *(Curve(f"xi = {keep:g}, E = {delay}", shown, mean_errors(by_delay[delay][0])) for delay in delays),
                ],
            )
        ],
        notes=[
            f"floor at E = {delays[-1]} over that at E = 0, xi = {keep:g}: log {higher.value:.2f} ± {higher.margin:.2f}"
            " (not a claim: whether delays raise the floor depends on alpha)"
        ],
    )


def _copy(problem: Problem) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in named_tensors(problem.model).items()}


def _load_(problem: Problem, tensors: dict[str, Tensor]) -> None:
    for name, tensor in named_tensors(problem.model).items():
        tensor.copy_(tensors[name])
