"""The page of results, from run folders made up here."""

import pytest
from made_runs import make_run

from skerry.experiments.reports.comparison import ReportError, grouped, load_runs
from skerry.experiments.reports.results_page import at_best_rate, main_metric, points, write_results

ABOUT = {"fashion-mlp": ("an MLP", "the paper has .9"), "digits-mlp": ("a smaller one", "")}


def some_runs(folder, recipe="digits-mlp"):
    common = {"recipe": recipe, "batch_size": 64, "split": "iid", "model": {"hidden": 8}}
    for rate, seeds in ((0.1, (0,)), (0.2, (0, 1)), (0.3, (0,))):
        for seed in seeds:
            sgd = {"name": "SGD", "lr": rate}
            make_run(
                folder / f"ist-{rate}-{seed}", seed=seed, optimizer=sgd, accuracy=rate + 0.3 + seed / 100, **common
            )
    make_run(folder / "local_sgd", method="local_sgd", accuracy=0.45, local_steps=20, **common)
    return load_runs(folder)


def test_the_rate_with_most_seeds_counts_else_the_best(tmp_path):
    chosen = at_best_rate(grouped(some_runs(tmp_path)), "accuracy")
    assert [(row.method, row.num_runs) for row, _ in chosen] == [("ist", 2), ("local_sgd", 1)]
    assert chosen[0][1][0].config["optimizer"]["lr"] == 0.2
    assert [value for _, value, _ in points(chosen, "accuracy")["ist"]] == [pytest.approx(0.505)]


def test_a_recipe_is_compared_by_its_own_metric_where_it_has_one(tmp_path):
    runs = some_runs(tmp_path)
    assert main_metric(runs) == "accuracy"
    runs[0].metrics[-1]["metrics"] = {"P@1": 0.25, "P@3": 0.5}
    assert main_metric(runs) == "P@1"


def test_the_page_has_what_is_published_the_table_the_picture_and_remarks(tmp_path):
    some_runs(tmp_path / "runs" / "digits-mlp")
    some_runs(tmp_path / "runs" / "fashion-mlp", "fashion-mlp")
    some_runs(tmp_path / "runs" / "fashion-mlp-64", "fashion-mlp")  # the same recipe with settings of its own
    (tmp_path / "runs" / "fashion-mlp" / "command.txt").write_text("python bench/frontier.py fashion-mlp\n")
    (tmp_path / "docs" / "remarks").mkdir(parents=True)
    (tmp_path / "docs" / "remarks" / "digits-mlp.md").write_text("Said by a person.\n")
    out = tmp_path / "docs" / "results.md"
    assert write_results(tmp_path / "runs", out, ABOUT) == ["fashion-mlp", "fashion-mlp-64", "digits-mlp"]
    page = out.read_text()
    assert page.index("## fashion-mlp") < page.index("the paper has .9") < page.index("## digits-mlp")
    assert "**.5050 ± .0071**" in page
    assert "Said by a person." in page
    settings = ("hidden 8", "4 workers", " 64", "iid")
    assert any(all(word in line for word in settings) for line in page.splitlines())
    assert "python bench/frontier.py fashion-mlp" in page
    assert page.count("the paper has .9") == 2
    for name in (*ABOUT, "fashion-mlp-64"):
        assert (tmp_path / "docs" / f"results-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_folder_of_the_page_is_made(tmp_path):
    some_runs(tmp_path / "runs" / "digits-mlp")
    write_results(tmp_path / "runs", tmp_path / "new" / "docs" / "results.md", {})
    assert (tmp_path / "new" / "docs" / "results-digits-mlp.png").exists()


def test_a_folder_without_runs_is_told(tmp_path):
    with pytest.raises(ReportError, match=str(tmp_path)):
        write_results(tmp_path, tmp_path / "results.md", ABOUT)


def test_the_lowest_perplexity_is_the_best(tmp_path):
    for rate, value in ((0.1, 8.0), (0.2, 5.0), (0.3, 6.0)):
        adamw = {"name": "AdamW", "lr": rate}
        last = {3: {"metrics": {"perplexity": value}}}
        make_run(tmp_path / "runs" / "gpt" / f"ist-{rate}", optimizer=adamw, accuracy=None, changes=last, batch_size=4,
                 split="iid", model={"width": 8})  # fmt: skip
    chosen = at_best_rate(grouped(load_runs(tmp_path / "runs" / "gpt")), "perplexity")
    assert [group[0].metrics["perplexity"] for group in chosen] == [5.0]
    write_results(tmp_path / "runs", tmp_path / "page.md", {})
    assert "**5.0000**" in (tmp_path / "page.md").read_text()
