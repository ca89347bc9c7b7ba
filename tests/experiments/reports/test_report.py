"""Reports are checked against numbers computed by hand from small made-up run folders.

The page is checked against rules: nothing is loaded from elsewhere, nothing a file says is read as markup.
"""

import html
import io
import math
import re
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_runs import make_run
from rich.console import Console

from skerry.experiments.cli.commands import main
from skerry.experiments.reports.comparison import (
    ReportError,
    Row,
    Run,
    grouped,
    load_run,
    load_runs,
    to_markdown,
    to_rich,
)
from skerry.experiments.reports.html import write_report
from skerry.experiments.reports.pictures import looks
from skerry.training.diagnosis.theory_warnings import CHECKS


def comparison(runs: list[Run]) -> list[Row]:
    return [row for row, _ in grouped(runs)]


def test_row_of_one_run(tmp_path: Path) -> None:
    (row,) = comparison([load_run(make_run(tmp_path / "a"))])
    assert (row.label, row.method, row.local_steps, row.rounds, row.num_runs) == ("ist", "ist", 20, 4, 1)
    assert (row.accuracy, row.accuracy_spread, row.loss) == (0.9, None, 0.5)
    assert (row.bytes_due, row.flop, row.memory_bytes, row.time_s) == (4e6, 12e9, 4.5e6, 8.0)
    assert row.bytes_sent == pytest.approx(4.4e6)
    assert row.outside_share == pytest.approx(0.25)


def test_seeds_are_one_row(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.90, 0.91, 0.95)):
        make_run(tmp_path / f"ist-{seed}", seed=seed, accuracy=accuracy, bytes_due=1e6 * (seed + 1))
    (row,) = comparison(load_runs(tmp_path))
    assert row.num_runs == 3
    assert row.accuracy == pytest.approx(0.92)
    assert row.accuracy_spread == pytest.approx(statistics.stdev((0.90, 0.91, 0.95)))
    assert row.bytes_due == pytest.approx(8e6)


def test_a_repeated_seed_is_no_further_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        make_run(tmp_path / name, seed=seed)
    rows = comparison(load_runs(tmp_path))
    assert [row.num_runs for row in rows] == [2, 1]
    assert [row.label for row in rows] == ["ist, a", "ist, c"]


def test_serial_runs_do_not_water_down_bytes_sent(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1, runtime="serial", changes={3: {"bytes_sent": 0}})
    (row,) = comparison(load_runs(tmp_path))
    assert row.bytes_sent == pytest.approx(4.4e6)


def test_labels_name_what_differs_within_a_method(tmp_path: Path) -> None:
    make_run(tmp_path / "a", local_steps=100, rounds=1)
    make_run(tmp_path / "b", local_steps=20, rounds=4)
    make_run(tmp_path / "c", local_steps=20, rounds=4, partition={"reshuffle": 1.0})
    make_run(tmp_path / "d", method="single", local_steps=400)
    labels = [row.label for row in comparison(load_runs(tmp_path))]
    assert labels == [
        "ist, 20 steps, reshuffle 0.1",
        "ist, 20 steps, reshuffle 1.0",
        "ist, 100 steps, reshuffle 0.1",
        "single",
    ]


def test_rounds_are_in_the_label_when_nothing_else_differs(tmp_path: Path) -> None:
    make_run(tmp_path / "a", rounds=4)
    make_run(tmp_path / "b", rounds=8)
    assert [row.label for row in comparison(load_runs(tmp_path))] == ["ist, rounds 4", "ist, rounds 8"]


def test_half_written_last_line_is_ignored(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", summary=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "time_s": 1')
    assert load_run(folder).num_rounds == 4


def test_corrupt_earlier_line_names_file_and_line(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a") / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:30], *lines[2:]]))
    with pytest.raises(ReportError, match=r"metrics\.jsonl\b.*\b2\b.*'round'"):
        load_run(path.parent)


def test_missing_metric_names_file_line_and_key(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a") / "metrics.jsonl"
    path.write_text(path.read_text() + '{"round": 4}\n')
    with pytest.raises(ReportError, match=r"metrics\.jsonl\b.*\b5\b.*'train_loss'"):
        load_run(path.parent)


@pytest.mark.parametrize("text", ["{", "[]", '{"recipe": "x"}', '{"method": 3}'])
def test_broken_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ReportError, match=re.escape(str(tmp_path / "config.json"))):
        load_runs(tmp_path)


def test_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=rf"{re.escape(str(tmp_path))}: .*\bconfig\.json\b"):
        load_runs(tmp_path)


def test_runs_are_found_at_any_depth_and_named_by_their_path(tmp_path: Path) -> None:
    for path in ("first", "a/b/run3", "a/b/run4"):
        make_run(tmp_path / path, seed=int(path[-1]) if path[-1].isdigit() else 0, method=path[0] + "st")
    make_run(tmp_path / "first" / "checkpoint" / "inside")  # a run's own folders are not searched
    (tmp_path / "a" / "back").symlink_to(tmp_path)  # nor is a folder entered twice
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "elsewhere").symlink_to(make_run(tmp_path.parent / f"{tmp_path.name}-elsewhere"))
    assert [run.name for run in load_runs(tmp_path)] == ["a/b/run3", "a/b/run4", "elsewhere", "first"]
    told = CliRunner().invoke(main, ["report", str(tmp_path)]).output
    assert "a/b/run3, a/b/run4\n" in told
    assert "a/b/run3, a/b/run4" in (tmp_path / "report.html").read_text()
    assert [run.name for run in load_runs(tmp_path / "a" / "b" / "run3")] == ["run3"]


@pytest.mark.parametrize("checked", [None, [], ["drift", "scale"]])
@pytest.mark.parametrize("warned", [{}, {"drift": "drift: far apart", "odd": "odd: anything"}])
def test_only_what_was_checked_is_said_to_be_well(tmp_path: Path, checked: list[str] | None, warned: dict) -> None:
    changes = {k: {} if checked is None else {"checked": checked if k == 1 else []} for k in range(4)}
    changes[2]["warnings"] = warned
    page = write_report(make_run(tmp_path / "a", changes=changes)).read_text()
    for text in warned.values():
        assert f"a, round 2:</b> {text}." in page
    assert ("Nothing was checked" in page) == (not checked and not warned)
    assert ("as far as it was checked" in page) == (bool(checked) and not warned)
    (line,) = re.findall(r"<tr><td>ist</td>((?:<td[^>]*>(?:warned|ok|-)</td>)+)</tr>", page)
    found = dict(zip(CHECKS, re.findall(r">(\w+|-)</td>", line), strict=True))
    assert found == {kind: "warned" if kind in warned else "ok" if kind in (checked or ()) else "-" for kind in CHECKS}
    assert all(html.escape(meaning, quote=False).replace("'", "&#39;") in page for meaning in CHECKS.values())


def test_a_page_needs_no_other_file_and_shows_accuracy_first(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "a")).read_text()
    assert "docs/" not in page
    assert re.search(r'<th scope="col">run</th><th scope="col">test accuracy</th>', page)


def test_missing_units_summary_and_metrics(tmp_path: Path) -> None:
    make_run(tmp_path / "a", num_rounds=3, accuracy=None, summary=False)
    make_run(tmp_path / "b", num_rounds=0, method="single", summary=False)
    (tmp_path / "b" / "metrics.jsonl").unlink()
    ist, single = comparison(load_runs(tmp_path))
    assert (ist.accuracy, ist.loss, ist.memory_bytes) == (None, 1.0, None)
    assert (single.rounds, single.time_s, single.outside_share) == (0, 0.0, None)
    page = write_report(tmp_path).read_text()
    assert re.search(r"\ba \(3 \w+ 3\b.*\bb \(0 \w+ 0\b", page)
    assert re.search(r"<h3>Test loss\b", page)


def test_tables_use_human_units(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0, accuracy=0.8958, changes={3: {"flop": 1.2e12, "exposure": 0.5}})
    make_run(tmp_path / "b", seed=1, accuracy=0.8978, changes={3: {"flop": 1.2e12}})
    rows = comparison(load_runs(tmp_path))
    titles, rule, line = (line.strip("| \n").split(" | ") for line in to_markdown(rows).splitlines())
    cells = dict(zip(titles, line, strict=True))
    assert rule == ["---", *["---:"] * (len(titles) - 1)]
    assert cells["test accuracy"] == ".8968 ± .0014"
    assert (cells["bytes due, MB"], cells["bytes sent, MB"], cells["memory, MB"]) == ("4.00", "4.40", "4.50")
    assert (cells["compute, TFLOP"], cells["time"], cells["outside"]) == ("1.20", "8.00 s", "25%")
    assert cells["seen"] == "50%"
    console = Console(file=io.StringIO(), width=80)
    console.print(to_rich(rows))
    assert isinstance(console.file, io.StringIO)
    assert all(cells[title] in console.file.getvalue() for title in ("test accuracy", "memory, MB", "outside"))


def test_page_is_self_contained(tmp_path: Path) -> None:
    counts = [
        {"name": "h0", "kind": "neurons", "counts": [*range(100)]},
        {"name": "h1", "kind": "heads", "counts": [7]},
    ]
    for seed in range(2):
        make_run(tmp_path / f"a{seed}", seed=seed, units={"rounds": 4, "axes": counts})
        make_run(tmp_path / f"b{seed}", seed=seed, method="single", bytes_due=0, units={"rounds": 4, "axes": []})
    even = [{"name": "h0", "kind": "neurons", "counts": [16, 16]}]
    make_run(
        tmp_path / "c",
        method="local_sgd",
        units={"rounds": 4, "axes": even},
        changes={2: {"refused": [1, 3]}},
    )
    path = write_report(tmp_path)
    page = path.read_text()
    assert path == tmp_path / "report.html"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a0", "a1", "b0", "b1", "c", "report.html"]
    assert page.count("<svg") == 5
    assert "data:image/png;base64," in page
    assert not re.search(r"http|<script|<link|@import|file:", page)
    assert all(re.match(r"#|data:", link) for link in re.findall(r'(?:href|src)="([^"]*)"', page))
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", page))
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert re.search(r"\bh0\b.* 100 neurons\b.*\b0\b.*\b99\b.*\b1\b", page)
    assert re.search(r"<p[^>]*>local_sgd\b[^<]*\b16\b", page)
    assert "<td>c</td><td>2</td><td>1, 3</td>" in page
    assert re.search(r"<h1>3 [^<]*\btiny\b", page)
    assert str(tmp_path) not in page


def test_one_method_has_one_colour_everywhere(tmp_path: Path) -> None:
    for method in ("ist", "relay", "narrow", "ensemble"):
        make_run(tmp_path / method, method=method)
    groups = grouped(load_runs(tmp_path))
    colours = {row.method: look["color"].lower() for (row, _), look in zip(groups, looks(groups), strict=True)}
    assert len(set(colours.values())) == 4
    page = write_report(tmp_path).read_text().lower()
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        assert all(method in picture and colour in picture for method, colour in colours.items())


def test_what_files_say_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$x$')</script>"
    axes = [{"name": evil, "kind": evil, "counts": [1, 2, 3]}]
    for name, tag in (("a", evil), ("b", "$_{")):
        make_run(tmp_path / name, recipe=evil, partition={"name": tag}, units={"axes": axes}, versions={evil: evil})
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_values_that_are_not_finite_are_left_out_of_pictures(tmp_path: Path) -> None:
    broken = {"train_loss": math.nan, "loss": math.inf}
    make_run(tmp_path / "a", seed=0, accuracy=None, changes=dict.fromkeys(range(2, 4), broken))
    make_run(tmp_path / "b", seed=1, accuracy=None, changes={3: {"train_loss": -math.inf, "loss": math.inf}})
    make_run(tmp_path / "c", method="local_sgd", accuracy=None, changes=dict.fromkeys(range(4), broken))
    assert "<svg" in write_report(tmp_path).read_text()


def test_single_run_page_says_what_it_was(tmp_path: Path) -> None:
    page = " ".join(write_report(make_run(tmp_path / "a")).read_text().split())
    assert re.search(r"<h1>4 [^<]*\btiny\b[^<]*\b4 [^<]*\b20 [^<]*\.9000\b", page)
    assert re.search(r"<p>[^<]*\b250 [^<]*\b1,000 [^<]*\b25%", page)


def test_a_callers_own_figures_keep_their_look(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(make_run(tmp_path / "a"))
    assert dict(matplotlib.rcParams) == before
