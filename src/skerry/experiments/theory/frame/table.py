"""The table of verdicts, for a terminal and as Markdown."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from skerry.experiments.reports.comparison import markdown_table
from skerry.experiments.theory.frame.verdict import Finding

if TYPE_CHECKING:
    from rich.table import Table

_TITLES = ("theorem", "claim", "bound", "measured", "slack", "holds")


def to_rich(findings: Mapping[str, Finding]) -> "Table":
    """Return the table of ``findings``, by name, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*_TITLES, box=None, pad_edge=False)
    for *cells, holds in _lines(findings):
        table.add_row(*map(Text, cells), Text(holds, style="green" if holds == "yes" else "bold red"))
    return table


def to_markdown(findings: Mapping[str, Finding]) -> str:
    """Return the same table as Markdown."""
    lines = [
        [name and f"`{name}`", *cells, "yes" if holds == "yes" else "**no**"]
        for name, *cells, holds in _lines(findings)
    ]
    return markdown_table(_TITLES, lines, left=("theorem", "claim", "holds"))


def _lines(findings: Mapping[str, Finding]) -> list[list[str]]:
    lines = []
    for name, finding in findings.items():
        for k, verdict in enumerate(finding.verdicts):
            bound = f"{'≤' if verdict.sense == '<=' else verdict.sense} {verdict.bound:.3g}"
            measured = f"{verdict.measured:.3g}" + (f" ± {verdict.margin:.2g}" if verdict.margin else "")
            slack = "" if verdict.slack is None else f"{verdict.slack:.2g}x"
            holds = "yes" if verdict.holds else "no"
            lines.append(["" if k else name, verdict.claim, bound, measured, slack, holds])
    return lines
