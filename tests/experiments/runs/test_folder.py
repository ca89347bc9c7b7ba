"""The text that identifies a run, against one that was written before some settings were there."""

import pytest

from skerry.experiments.config import Config
from skerry.experiments.runs.folder import run_id

OF_BEFORE = (
    '{"accumulate": 1, "batch_size": 128, "checkpoint_activations": false, "clip_grad_norm": null, "compile": '
    'false, "data": {}, "eval_batch_size": 4096, "eval_every": 10, "local_steps": 50, "max_bad_rounds": 5, '
    '"method": "ist", "model": {}, "optimizer": {"lr": 0.1, "momentum": 0.9, "name": "SGD"}, "optimizer_state": '
    'null, "outer": {"lr": 0.7, "momentum": 0.9}, "overlap": 0, "partition": {"core": 0.0, "min_units": 1, '
    '"reshuffle": 1.0, "step": 1, "warmup_rounds": 0}, "precision": "fp32", "recipe": "digits-mlp", "schedule": '
    '"cosine", "seed": 0, "split": "iid", "width": null, "wire": "exact"}'
)
"""Of a run before there were ``proximal`` and ``by_samples``."""


def test_an_older_checkpoint_is_one_of_the_same_settings():
    assert run_id(Config(recipe="digits-mlp")) == OF_BEFORE


@pytest.mark.parametrize("setting", [{"proximal": 0.1}, {"by_samples": True}])
def test_and_of_no_others(setting):
    assert run_id(Config(recipe="digits-mlp", **setting)) != OF_BEFORE
