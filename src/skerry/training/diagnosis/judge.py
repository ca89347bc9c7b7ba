"""The judge of a session: from a run's measures to its warnings, each kind once, the same in every process."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from skerry.plan.table import Plan
from skerry.plan.warnings import bottleneck, lone_units
from skerry.training.diagnosis import theory_warnings as theory
from skerry.training.diagnosis.measures import Diagnosis
from skerry.training.diagnosis.remedies import advice, situation_of
from skerry.training.diagnosis.theory_warnings import TheoryWarning
from skerry.training.diagnosis.untrained_pairs import untrained_pairs
from skerry.training.evaluation.evaluate import Score
from skerry.training.setup import Setup


class Judge:
    """Warns, and notes what was checked.

    Args:
        setup: of the session.
        plan: of the model that the user gave.
        has_priors: whether label priors are in the logits; None: not known.
        memory: what has been seen in earlier rounds, ``State.observed``.
    """

    def __init__(self, setup: Setup, plan: Plan, has_priors: bool | None, memory: dict[str, list[float]]) -> None:
        self._setup, self._plan, self._memory = setup, plan, memory
        self._run = situation_of(setup, plan, has_priors)
        self._warned: set[str] = set()

    def before_training(self) -> Diagnosis:
        """Return what needs no training."""
        setup, run, axes = self._setup, self._run, self._plan.axes
        algorithm, held = setup.algorithm, setup.assignment(0).held
        own = [algorithm.trains.num_units(axis) for axis in axes]
        smallest = [
            int(held[:, axis.units].sum(1).min()) if num is None else num for num, axis in zip(own, axes, strict=True)
        ]
        possible: dict[str, str | None] = {}
        if any(num < axis.num_units for num, axis in zip(smallest, axes, strict=True)):
            possible["bottleneck"] = self._advised("bottleneck", bottleneck(axes, smallest))
        dealt = [int(held[:, axis.units].sum(1).min()) for axis in setup.plan.axes]
        sizes = {n: p.numel() for n, p in setup.model.named_parameters() if p.requires_grad}
        fraction, where = untrained_pairs(setup.plan, sizes, setup.assignment, setup.num_rounds)
        if where:
            lone = lone_units(setup.plan.axes, setup.plan.dims, dealt)
            possible["one unit per worker"] = self._advised("one unit per worker", lone)
            possible["untrained weights"] = None if lone else theory.untrained_warning(fraction, where, run)
        if algorithm.rounds_per_cycle > 1:
            num_clients = None if algorithm.clients is None else algorithm.clients.num
            cycle = math.ceil(algorithm.rounds_per_cycle * algorithm.num_parts / run.num_workers)
            possible["few rounds"] = theory.few_rounds_warning(setup.num_rounds, cycle, run, num_clients)
        return self._warn(Diagnosis(), possible)

    def _advised(self, kind: str, found: tuple[str, str] | None) -> str | None:
        """Return what was found of an axis (its name, and a sentence) with the remedies that are left."""
        return None if found is None else f"{found[1]}; {advice(kind, self._run, axis=found[0])}"

    def after_round(
        self,
        found: Diagnosis,
        *,
        never_trained: float,
        moves: tuple[float, float] | None,
        train_loss: float,
        refused: Sequence[int],
    ) -> Diagnosis:
        """Return ``found`` with what the round's measures warn of.

        Args:
            found: the measures.
            never_trained: the fraction of units that will never be trained.
            moves: square of the mean move and mean of the squared moves, None where drift is not to be judged.
            train_loss: of the round.
            refused: the workers that were refused.
        """
        run, memory, round = self._run, self._memory, self._setup.num_rounds - found.rounds_left - 1
        possible = {
            "refused": theory.refused_warning(round, refused, run),
            "coverage": theory.coverage_warning(never_trained, found.rounds_left, run),
        }
        if found.subnet_loss is not None:
            memory.setdefault("subnet loss", [found.subnet_loss])
        if found.label_skew is not None and run.num_workers > 1:
            possible["label skew"] = theory.label_skew_warning(found.label_skew, run)
        along, apart, num = memory.get("moves", [0.0, 0.0, 0.0])
        if moves is not None and num < theory.MAX_DRIFT_ROUNDS:
            along, apart, num = memory["moves"] = [along + moves[0], apart + moves[1], num + 1]
        if num >= theory.MIN_DRIFT_ROUNDS:
            possible["drift"] = theory.drift_warning(along, apart, run)
        if math.isfinite(train_loss):
            first, *latest = [*memory.get("train loss", []), train_loss]
            memory["train loss"] = [first, *latest[-theory.LOSS_ROUNDS :]]
            if len(latest) >= theory.LOSS_ROUNDS:
                mean = sum(latest[-theory.LOSS_ROUNDS :]) / theory.LOSS_ROUNDS
                possible["loss"] = theory.loss_warning(first, mean, run)
        return self._warn(found, possible)

    def after_score(self, found: Diagnosis, score: Score, *, dealt: bool, most_frequent: float | None) -> Diagnosis:
        """Return ``found`` with the full model's loss on the probe, and what its score warns of.

        Args:
            found: the measures of the round.
            score: of the full model.
            dealt: whether anything is dealt out.
            most_frequent: the frequency of the most frequent class in the test set, None where labels are no classes.
        """
        run, memory, full = self._run, self._memory, score.probe_loss
        found, possible = replace(found, full_loss=full), {"loss": theory.full_loss_warning(score.loss, run)}
        if full is not None and math.isfinite(full) and found.subnet_loss is not None and dealt:
            latest = [*memory.get("scale", []), found.subnet_loss, full][-2 * theory.SCALE_EVALUATIONS :]
            memory["scale"] = latest
            pairs = list(zip(latest[::2], latest[1::2], strict=True))
            possible["scale"] = theory.scale_warning(pairs, memory["subnet loss"][0], run)
        if found.rounds_left == 0 and most_frequent is not None and math.isfinite(score.accuracy):
            possible["chance"] = theory.chance_warning(score.accuracy, most_frequent, score.count, run)
        return self._warn(found, possible)

    def _warn(self, found: Diagnosis, possible: Mapping[str, str | None]) -> Diagnosis:
        """Return ``found`` with warnings of new kinds, and issue them in the first process."""
        new = {kind: text for kind, text in possible.items() if text is not None and kind not in self._warned}
        self._warned |= set(new)
        for text in new.values() if self._setup.runtime.rank == 0 else ():
            warnings.warn(text, TheoryWarning, stacklevel=5)  # the caller's loop
        checked = tuple(dict.fromkeys((*found.checked, *possible)))
        return replace(found, checked=checked, warnings={**found.warnings, **new})
