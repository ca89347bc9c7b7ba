"""AsyncDrop: masked clients that arrive late. Delays slow training down; the floor comes from masks, not delays.

The server never waits. At step t a client returns that got the masked network E steps ago, and is mixed in:

    W <- W (1 - M) + ((1 - alpha) W + alpha W_i) M,   W_i from tau local steps on M W_{t-E}, M Bernoulli with keep xi.

Checked, with lambda_0 = lambda_min(xi H_infinity) and u_t the full network's outputs times xi:

    E = 0:   E ||y - u_t||^2 <= (1 - eta alpha xi tau lambda_0 / 4)^t ||y - u_0||^2 + floor,   floor 0 at xi = 1;
    E > 0 and xi = 1: no floor either (clients do not change a network that fits all data), but slower;
    the floor grows with 1 - xi; errors before the floor grow with E.

The first line is theorem 3 of arXiv 2112.02668 with one mask a step (theta = xi) and a step damped by alpha.

Source: Dun, Hipolito, Jermaine, Dimitriadis, Kyrillidis: Efficient and Light-Weight Federated Learning via Asynchronous
Distributed Dropout, 2022, arXiv 2210.16105: the server's rule. Its theorem is for a one-hidden-layer CNN with bounded
delays. We have neither its statement nor its constants, so directions are checked, not the terms of its floor. Delays
are constant here, and clients have all data.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from skerry.experiments.theory.frame.fit import exponent, mean, numbers
from skerry.experiments.theory.frame.masks import Bernoulli
from skerry.experiments.theory.frame.rates import at_rate, error_panel, floors, later_over_earlier, settled
from skerry.experiments.theory.frame.shallow import limit_kernel, shallow
from skerry.experiments.theory.frame.simulate import Problem, Trace, extremes, outputs, trained
from skerry.experiments.theory.frame.verdict import Finding, estimated
from skerry.model.tensors import named_tensors
from skerry.subnet.cuts import Cuts
from skerry.subnet.slicing import put_, take


def serve(
    problem: Problem, *, keep: float, delay: int, alpha: float, step: float, local: int, num_steps: int, seed: int
) -> Trace:
    """Let ``num_steps`` clients return, each ``delay`` steps late (the first ones less: there is no older network)."""
    partition = Bernoulli(1, keep, seed)
    share = partition.share(problem.plan.axes, 0)
    versions = [problem.model]  # of the server's network: the next client has the first, the last is current
    found = [outputs(problem, share)]
    for t in range(num_steps):
        units = partition.assign(problem.plan.axes, t).units(0)
        subnet, _ = trained(replace(problem, model=versions[0]), units, step=step, local=local)
        model = copy.deepcopy(versions[-1])
        parts, cuts = named_tensors(subnet), Cuts(problem.plan, units)
        for name, tensor in named_tensors(model).items():
            cut = cuts.of(name)
            assert cut is not None  # no blocks are dealt out here
            put_(tensor, (1 - alpha) * take(tensor, cut) + alpha * parts[name], cut)
        versions = [*versions, model][-(delay + 1) :]
        found.append(outputs(replace(problem, model=model), share))
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
    num_steps: int = 96,
    step: float = 0.5,
) -> Finding:
    """Measure errors over ``repeats`` problems.

    Args:
        delays: by how many steps a client is late, from 0 up.
        alpha: the weight of a client.
        step: eta in units of 1 / lambda_max; a value above 2 breaks the assumption.
    """

    def traces(xi: float, delay: int) -> tuple[list[Trace], list[float]]:
        found, rates = [], []
        for s in range(seed, seed + repeats):
            problem = shallow(seed=s, width=width)
            low, high = (xi * value for value in extremes(limit_kernel(problem.x)))
            eta = step / high
            found.append(
                serve(problem, keep=xi, delay=delay, alpha=alpha, step=eta, local=local, num_steps=num_steps, seed=s)
            )
            rates.append(1 - eta * alpha * xi * local * low / 4)
        return found, rates

    longest, early = delays[-1], num_steps // 12
    whole, (late, _) = traces(1.0, 0), traces(1.0, longest)
    by_delay = {delay: traces(keep, delay) for delay in delays}
    by_drop = [by_delay[0][0] if 1 - drop == keep else traces(1 - drop, 0)[0] for drop in drops]
    in_drop = exponent(numbers(drops), floors(by_drop))
    ratios = [float(b.errors[early] / a.errors[early]) for a, b in zip(whole[0], late, strict=True)]
    slower, falls = mean(numbers(ratios).log()), mean(later_over_earlier(late))
    of_delay = floors([by_delay[delay][0] for delay in (0, longest)])
    higher = mean((of_delay[:, 1] / of_delay[:, 0]).log())
    return Finding(
        source="arXiv 2210.16105; rate of arXiv 2112.02668, theorem 3",
        verdicts=[
            at_rate("xi = 1, E = 0", *whole, floor=False),
            at_rate(f"xi = {keep:g}, E = 0", *by_delay[0]),
            estimated(
                f"xi = 1, E = {longest}: no floor, log of the error's last over its middle third", "<", 0.0, falls
            ),
            estimated(f"delays slow down: log of error at E = {longest} over E = 0, step {early}", ">", 0.0, slower),
            estimated("floor grows with 1 - xi, exponent", ">", 0.0, in_drop),
            settled(by_drop),
        ],
        panels=[
            error_panel(
                f"{width} units, alpha {alpha:g}, {local} local steps",
                {
                    "xi = 1, E = 0": whole[0],
                    f"xi = 1, E = {longest}": late,
                    **{f"xi = {keep:g}, E = {delay}": found for delay, (found, _) in by_delay.items()},
                },
                xlabel="clients arrived",
            )
        ],
        notes=[
            f"floor at E = {longest} over that at E = 0, xi = {keep:g}: log {higher.value:.2f} ± {higher.margin:.2f}"
            " (not a claim: whether delays raise the floor depends on alpha)"
        ],
    )
