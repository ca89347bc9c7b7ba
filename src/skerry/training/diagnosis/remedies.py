"""What a warning advises: only what the run does not have yet, and what its method and plan have room for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from skerry.partitions.disjoint import Disjoint
from skerry.partitions.everything import Everything
from skerry.partitions.fractional import Nested, Rolling, Sampled
from skerry.partitions.warmup import Warmup
from skerry.plan.table import Plan
from skerry.trained import Apart, Narrow
from skerry.training.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a run has already.

    Attributes:
        num_workers: of the run.
        local_steps: per round.
        rate_falls: whether the schedule ends below its middle.
        has_priors: whether label priors are in the logits; None: a loop of one's own does not say.
        replicas: whether every worker trains the same net, as in ``narrow`` and ``local_sgd``.
        narrow: whether that net is narrower than the model.
        apart: whether nets share nothing, as in ``relay`` and ``ensemble``.
        separable: whether the plan allows that.
        core: the fraction that all workers hold; None where the method has no core.
        fractions: whether a worker's fraction of the units can be chosen.
        rolling: whether a step can be.
        own_partition: whether the partition is not one of Skerry's.
    """

    num_workers: int
    local_steps: int
    rate_falls: bool
    has_priors: bool | None
    replicas: bool
    narrow: bool
    apart: bool
    separable: bool
    core: float | None
    fractions: bool
    rolling: bool
    own_partition: bool


def situation_of(setup: Setup, plan: Plan, has_priors: bool | None) -> Situation:
    """Return the situation of a run.

    Args:
        setup: of its session.
        plan: of the model that the user gave.
        has_priors: see ``Situation``.
    """
    algorithm = setup.algorithm
    partition, apart = algorithm.partition, isinstance(algorithm.trains, Apart)
    partition = partition.then if isinstance(partition, Warmup) else partition
    narrow = isinstance(algorithm.trains, Narrow)
    return Situation(
        num_workers=partition.num_workers,
        local_steps=algorithm.local_steps,
        rate_falls=setup.scheduler is not None or setup.schedule(0.99) < setup.schedule(0.5),
        has_priors=has_priors,
        replicas=isinstance(partition, Everything),
        narrow=narrow,
        apart=apart,
        separable=not (apart or narrow) and plan.why_dependent(setup.model) is None,
        core=partition.core if isinstance(partition, Disjoint) else None,
        fractions=isinstance(partition, Sampled | Rolling | Nested),
        rolling=isinstance(partition, Rolling),
        own_partition=not type(partition).__module__.startswith("skerry."),
    )


Remedy = tuple[str, Callable[[Situation], bool]]
"""What to try, and whether a run has neither tried it nor no room for it."""

_PRIORS = "label priors in the workers' logits (skerry.training.log_priors, prior_adjusted=true)"

REMEDIES: Mapping[str, Sequence[Remedy]] = {
    "drift": (
        ("a learning rate that falls to 0 (schedule=cosine)", lambda run: not run.rate_falls),
        ("a lower learning rate", lambda run: True),
        ("fewer local_steps", lambda run: run.local_steps > 1),
        ("more similar data for the workers", lambda run: True),
    ),
    "label skew": (
        (_PRIORS, lambda run: run.has_priors is False),
        (f"{_PRIORS} if they are not there yet", lambda run: run.has_priors is None),
        ("narrow or local_sgd (they lose least)", lambda run: not run.replicas),
        ("mixed data (split=iid)", lambda run: True),
        ("some data that all workers have", lambda run: True),
    ),
    "coverage": (
        ("more rounds", lambda run: True),
        ("larger fractions", lambda run: run.fractions),
        ("more workers", lambda run: True),
        ("a larger step", lambda run: run.rolling),
        ("ist (it trains every unit in every round)", lambda run: run.core is None),
    ),
    "few rounds": (
        ("at least {rounds} rounds, of fewer local_steps each", lambda run: run.local_steps > 1),
        ("at least {rounds} rounds", lambda run: run.local_steps == 1),
    ),
    "bottleneck": (
        ("a core that all workers hold (core=.5)", lambda run: run.core == 0),
        ("a larger core", lambda run: run.core is not None and run.core > 0),
        ("ist with a core (core=.5)", lambda run: run.core is None),
        ("a larger width", lambda run: run.narrow),
        ("the axis whole (plan.without('{axis}'))", lambda run: run.narrow),
        ("the method narrow with the axis whole (plan.without('{axis}'))", lambda run: not run.narrow),
        ("fewer workers", lambda run: run.num_workers > 2 and not run.narrow),
        ("larger fractions", lambda run: run.fractions),
    ),
    "one unit per worker": (
        ("a core that all workers hold (core=.5)", lambda run: run.core == 0),
        ("fewer workers", lambda run: run.num_workers > 2),
        ("a method without such weights: relay or ensemble", lambda run: run.separable),
        ("narrow", lambda run: not run.narrow),
    ),
    "untrained weights": (
        ("more rounds of fewer local_steps", lambda run: run.local_steps > 1),
        ("a longer training", lambda run: run.local_steps == 1),
        ("fewer workers", lambda run: run.num_workers > 2),
        ("a core that all workers hold", lambda run: run.core == 0),
        ("a larger core", lambda run: run.core is not None and run.core > 0),
        ("a method without such weights: relay or ensemble", lambda run: run.separable),
    ),
    "scale": (
        ("a fitted scale (skerry.merge.fit_scale)", lambda run: not run.apart),
        ("relay or ensemble (they average outputs)", lambda run: run.separable),
        ("narrow", lambda run: not run.replicas),
        ("whole axes (plan.without)", lambda run: not run.apart),
        ("a partition.share that is right", lambda run: run.own_partition),
    ),
    "refused": (
        ("a lower learning rate", lambda run: True),
        ("gradients that are clipped", lambda run: True),
        ("a look at the data", lambda run: True),
    ),
    "loss": (
        ("a lower learning rate", lambda run: True),
        ("a learning rate that falls to 0 (schedule=cosine)", lambda run: not run.rate_falls),
        ("a look at data and labels", lambda run: True),
    ),
    "chance": (
        ("more rounds", lambda run: True),
        ("another learning rate", lambda run: True),
        ("a look at data and labels", lambda run: True),
    ),
}


def advice(kind: str, run: Situation, **names: object) -> str:
    """Return the remedies that are left to ``run``: "try A, B or C"; ``names`` are filled in."""
    left = [text.format(**names) for text, is_left in REMEDIES[kind] if is_left(run)]
    return "try " + " or ".join(filter(None, [", ".join(left[:-1]), left[-1]]))
