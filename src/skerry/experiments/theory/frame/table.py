"""The table of verdicts, for a terminal and for a page."""

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from skerry.experiments.theory.frame.verdict import Finding, Verdict

_HEAD = ("theorem", "claim", "bound", "measured", "slack", "holds")


def to_rich(findings: Mapping[str, Finding]) -> Table:
    """The table for a terminal; ``findings`` by name."""
    table = Table(*_HEAD, box=None, pad_edge=False)
    for name, finding in findings.items():
        for k, verdict in enumerate(finding.verdicts):
            holds = "[green]yes[/]" if verdict.holds else "[bold red]no[/]"
            row = [escape(cell) for cell in (name if k == 0 else "", *_cells(verdict))]
            table.add_row(*row, holds)
    return table


def to_markdown(findings: Mapping[str, Finding]) -> str:
    """The same table as Markdown."""
    lines = [f"| {' | '.join(_HEAD)} |", "|---|---|---:|---:|---:|---|"]
    for name, finding in findings.items():
        for k, verdict in enumerate(finding.verdicts):
            cells = (f"`{name}`" if k == 0 else "", *_cells(verdict), "yes" if verdict.holds else "**no**")
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _cells(verdict: Verdict) -> tuple[str, str, str, str]:
    measured = f"{verdict.measured:.3g}" + (f" ± {verdict.margin:.2g}" if verdict.margin else "")
    bound = f"{'≤' if verdict.sense == '<=' else verdict.sense} {verdict.bound:.3g}"
    return verdict.claim, bound, measured, "" if verdict.slack is None else f"{verdict.slack:.2g}x"
