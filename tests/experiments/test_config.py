"""Settings: they survive JSON and keep their types."""

import pytest

from skerry.experiments.config import Config, parse_settings


def test_settings_survive_json_and_keep_their_types():
    words = ["optimizer.lr=.3", "partition.capacities=[1,2.5]", "workers=2", "split=by_label", "timeout_s=5"]
    config = Config(recipe="r").change(parse_settings([*words, "prior_adjusted=true"]))
    assert (config.optimizer["lr"], config.partition.capacities, config.workers) == (0.3, (1.0, 2.5), 2)
    assert isinstance(config.timeout_s, float)
    assert config.prior_adjusted is True
    assert Config.from_json(config.to_json()) == config
    config = config.change(parse_settings(["clip_grad_norm=1", "precision=bf16", "compile=true", "accumulate=2"]))
    assert config.steps == {
        "clip_grad_norm": 1.0, "accumulate": 2, "precision": "bf16", "checkpoint_activations": False, "compile": True,
        "deadline": "none",
    }  # fmt: skip
    assert Config.from_json(config.to_json()) == config
    for wrong, named in (
        ("precision=bf17", "precision.*bf16"),
        ("clip_grad_norm=0", "clip_grad_norm=0"),
        ("accumulate=0", "accumulate=0"),
    ):
        with pytest.raises(ValueError, match=named):
            config.change(parse_settings([wrong]))
    with pytest.raises(ValueError, match=r"'worker'.*'workers'"):
        Config.from_json({**config.to_json(), "worker": 2})
    with pytest.raises(ValueError, match=r"workers\b.*\bTrue\b"):
        config.change({"workers": True})
    with pytest.raises(ValueError, match=r"prior_adjusted\b.*\b1\b.*\btrue\b.*\bfalse\b"):
        config.change({"prior_adjusted": 1})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (".3", 0.3),
        ("-.3", -0.3),
        ("[1,.5,.25]", [1, 0.5, 0.25]),
        ("[-.5, 1e-3]", [-0.5, 1e-3]),
        ('["a .5", .5]', ["a .5", 0.5]),  # text in quotes stays as it is
        ("e5", "e5"),
        (".5.5", ".5.5"),
        ("./samples.5", "./samples.5"),
        ("v.5", "v.5"),
    ],
)
def test_numbers_may_begin_with_a_point(text, value):
    assert parse_settings([f"data.any={text}"]) == {"data.any": value}
