"""The report: one self-contained HTML page about a run or a folder of runs, from the template report.html.jinja."""

from pathlib import Path

from skerry.experiments.reports.comparison import (
    Group,
    Run,
    accuracy_text,
    duration,
    flat,
    grouped,
    load_runs,
    number,
    run_label,
    table_lines,
)
from skerry.experiments.reports.pictures import curve_pictures, looks, set_style, unit_pictures
from skerry.files import atomic
from skerry.training.diagnosis.measures import MEASURES
from skerry.training.diagnosis.theory_warnings import CHECKS


def write_report(folder: Path) -> Path:
    """Write ``report.html``, one self-contained page about the run or runs in ``folder``, and return its path.

    Raises:
        ReportError: there is no run, or a file is broken.
    """
    import jinja2  # slow to import, like matplotlib
    import matplotlib

    runs = load_runs(folder)
    groups = grouped(runs)
    with matplotlib.rc_context():  # restored at the end: a caller's own figures keep their style
        set_style()
        pictures, units = curve_pictures(groups), unit_pictures(groups)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"number": number, "accuracy": accuracy_text, "duration": duration}
    started = [(row, run) for row, runs in groups for run in runs if run.metrics]
    checks = [(run_label(row, run), _checks(run)) for row, run in started]
    versions = [f"{key} {value}" for run in runs for key, value in run.config.get("versions", {}).items()]
    html = pages.get_template("report.html.jinja").render(
        name=folder.resolve().name,
        recipe=", ".join(dict.fromkeys(str(run.config.get("recipe", run.name)) for run in runs)),
        runs=runs,
        rows=[row for row, _ in groups],
        table=table_lines([row for row, _ in groups]),
        looks=looks(groups),
        pictures=pictures,
        units=units,
        times=[(run_label(row, run), run.metrics[-1]) for row, run in started],
        measures=[(run_label(row, run), _measures(run)) for row, run in started],
        warnings=_warnings([run for _, run in started]),
        meanings_of_checks=CHECKS,
        checks=checks,
        anything_checked=any(result != "-" for _, results in checks for result in results.values()),
        changes=[(run.name, m["change"]) for run in runs for m in run.metrics if "change" in m],
        refused=[(run.name, m["round"], m["refused"]) for run in runs for m in run.metrics if m["refused"]],
        settings=_settings(groups),
        versions=list(dict.fromkeys(versions)),
    )
    path = folder / "report.html"
    atomic.write(path, html.encode())
    return path


def _measures(run: Run) -> dict[str, str]:
    """Return the last known value of each measure."""
    rounds = [m.get("diagnosis", {}) for m in run.metrics]
    found = {name: [each[name] for each in rounds if each.get(name) is not None] for name in MEASURES}
    return {name: number(values[-1] if values else None) for name, values in found.items()}


def _warnings(runs: list[Run]) -> list[tuple[str, int, str]]:
    """Return run, round and text of each kind of warning, at its first occurrence."""
    found: dict[tuple[str, str], tuple[str, int, str]] = {}
    for run in runs:
        for m in run.metrics:
            for kind, text in m.get("warnings", {}).items():
                found.setdefault((run.name, kind), (run.name, m["round"], text))
    return list(found.values())


def _checks(run: Run) -> dict[str, str]:
    """Return for each kind of warning what came of its check: "warned", "ok", or "-" where there was none."""
    checked = {kind for m in run.metrics for kind in m.get("checked", [])}
    warned = {kind for m in run.metrics for kind in m.get("warnings", {})}
    return {kind: "warned" if kind in warned else "ok" if kind in checked else "-" for kind in CHECKS}


def _settings(groups: list[Group]) -> list[tuple[str, list[str]]]:
    """Return each setting with its value in every row, or with one value if all rows agree."""
    columns = []
    for row, runs in groups:
        column = {"method": row.method, "folder": ", ".join(run.name for run in runs)}
        for key in ("seed", "runtime"):
            column[key] = ", ".join(dict.fromkeys(str(run.config.get(key, "-")) for run in runs))
        column |= flat(runs[0].config) | {"workers": runs[0].workers}
        sizes, memory = (runs[0].summary.get(key, {}) for key in ("parameters", "memory_bytes"))
        column |= {f"parameters, {key}": f"{count:,}" for key, count in sizes.items()}
        column |= {f"memory, {key}": f"{number(num_bytes, 1e6)} MB" for key, num_bytes in memory.items()}
        columns.append(column)
    keys = dict.fromkeys(key for column in columns for key in column)
    lines = [(key, [column.get(key, "-") for column in columns]) for key in keys]
    return [(key, values[:1] if len(set(values)) == 1 else values) for key, values in lines]
