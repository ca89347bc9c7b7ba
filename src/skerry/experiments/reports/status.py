"""``skerry status``: how far a run is, from the files that it writes."""

from pathlib import Path

from skerry.checkpoint import layout
from skerry.experiments.reports.comparison import ReportError, Run, accuracy_text, duration, load_run, number
from skerry.experiments.runs.folder import is_written, no_run

_LATEST = 10  # rounds whose time says what the others will take


def status(folder: Path) -> list[str]:
    """Return lines about the run in ``folder``: round, workers, speeds, processes lost, the time left.

    Raises:
        ReportError: there is no run, or a file is broken.
    """
    if not (folder / "config.json").exists():
        raise ReportError(no_run(folder))
    run = load_run(folder)
    title = f"{run.config.get('recipe', run.name)} {run.config['method']}"
    if not ((folder / "metrics.jsonl").exists() or is_written(folder)):
        return [f"{title}: another process writes this run; ask for its status there"]
    what = "finished" if run.summary.get("finished") else "running" if is_written(folder) else "not running here"
    rounds = run.config.get("rounds", 0)
    lines = [f"{title}: {what}, round {run.num_rounds} of {rounds}"]
    if not run.metrics:
        return lines
    last = run.metrics[-1]
    lines.append(f"workers: {last.get('workers', run.config.get('workers'))}{_speeds(run)}")
    scores = [m for m in run.metrics if m["accuracy"] is not None]
    if scores:
        lines.append(f"test accuracy: {accuracy_text(scores[-1]['accuracy'])} after round {scores[-1]['round'] + 1}")
    changes = [m["change"] for m in run.metrics if "change" in m]
    if changes:
        lost, joined, units = (sum(map(len, (c[n] for c in changes))) if n != "units_lost" else
                               sum(c[n] for c in changes) for n in ("lost", "joined", "units_lost"))  # fmt: skip
        lines.append(f"processes: {joined} joined, {lost} lost; {units} times a unit lost its round")
    left = f", about {duration(_left_s(run, rounds))} left" if what != "finished" else ""
    lines.append(f"time: {duration(last['time_s'])}{left}")
    if saved := layout.complete_sets(folder):
        lines.append(f"checkpoint: after round {layout.round_of(saved[0].name)}")
    return lines


def _speeds(run: Run) -> str:
    """Return local steps per second of each worker in the last round that has them."""
    last = next((m for m in reversed(run.metrics) if m.get("local_s_of")), None)
    if last is None or not all(last["local_s_of"]):
        return ""
    speeds = [steps / s for steps, s in zip(last["local_steps_of"], last["local_s_of"], strict=True)]
    return f", local steps per second: {', '.join(map(number, speeds))}"


def _left_s(run: Run, rounds: int) -> float:
    """Return the seconds that the rounds that are left will take, if they take as long as the latest."""
    latest = run.metrics[-_LATEST - 1 :]
    num = latest[-1]["round"] - latest[0]["round"]
    began, before = (latest[0]["time_s"], num) if num else (0.0, run.num_rounds)
    return float((latest[-1]["time_s"] - began) / before * (rounds - run.num_rounds))
