"""Random crops and flips: against cutting each image by hand, and as a pure function of (seed, worker, step)."""

import archives
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from skerry.callbacks import Callback
from skerry.experiments.recipes import RECIPES
from skerry.experiments.recipes.augmented import PAD, crops_and_flips
from skerry.experiments.runs.execute import configure, run
from skerry.randomness import generator
from skerry.runtimes.serial import Serial

SMALL = {
    "model.width": 4,
    "data.images": 50,
    "batch_size": 8,
    "workers": 2,
    "rounds": 4,
    "local_steps": 2,
    "threads": 1,
}


def job(tmp_path, monkeypatch, **settings):
    archives.make(tmp_path, monkeypatch)
    return RECIPES["resnet18-cifar"]().build(configure("resnet18-cifar", "ist", SMALL | settings))


def drawn(images, changed):
    """For each image, the corner of its crop and whether it is mirrored: the one that gives ``changed``."""
    height, width = images.shape[2:]
    padded, found = F.pad(images, [PAD] * 4), []
    for image, got in zip(padded, changed, strict=True):
        crops = {(t, l): image[:, t : t + height, l : l + width] for t in range(9) for l in range(9)}  # noqa: E741
        (one,) = [(*at, k) for at, crop in crops.items() for k, c in enumerate((crop, crop.flip(2))) if c.equal(got)]
        found.append(one)
    return found


def test_crops_are_of_the_padded_image_and_half_of_them_are_mirrored():
    images = torch.randn(600, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = drawn(images, crops_and_flips(images, generator(0)))
    assert {(top, left) for top, left, _ in found} == {(t, left) for t in range(9) for left in range(9)}
    assert sum(mirrored for *_, mirrored in found) == pytest.approx(300, abs=37)  # three standard deviations


def test_batches_are_a_function_of_seed_worker_and_step(tmp_path, monkeypatch):
    one, same, plain = (
        job(tmp_path, monkeypatch, **{"data.crops_and_flips": changed}).data for changed in (True, True, False)
    )
    batches = list(one.batches(1, 0, 6))
    others = [*same.batches(1, 0, 2), *same.batches(1, 2, 4)]  # as after a resume
    assert all(x.equal(x2) and y.equal(y2) for (x, y), (x2, y2) in zip(batches, others, strict=True))
    as_stored = list(plain.batches(1, 0, 6))
    assert all(y.equal(y2) for (_, y), (_, y2) in zip(batches, as_stored, strict=True))
    draws = [tuple(drawn(x2, x)) for (x, _), (x2, _) in zip(batches, as_stored, strict=True)]
    ((x0, _),), ((x1, _),) = one.batches(0, 0, 1), plain.batches(0, 0, 1)
    assert len({*draws, tuple(drawn(x1, x0))}) == 7  # other steps and workers draw others


def test_what_is_calibrated_and_tested_on_is_not_changed(tmp_path, monkeypatch):
    changed, plain = (job(tmp_path, monkeypatch, **{"data.crops_and_flips": on}) for on in (True, False))
    assert changed.data.sample(0, 20).equal(plain.data.sample(0, 20))
    assert changed.test[0].equal(plain.test[0])


@pytest.mark.slow
def test_a_run_with_crops_resumes_exactly(tmp_path, monkeypatch):
    archives.make(tmp_path, monkeypatch)
    settings = SMALL | {"data.crops_and_flips": True, "checkpoint_every_s": 0}
    config = configure("resnet18-cifar", "ist", settings)

    def fail(session, record):
        if session.state.round == 3:
            raise RuntimeError("here it ends")

    with pytest.raises(RuntimeError, match="here it ends"):
        run(config, tmp_path / "broken", Serial(), resume=False, callbacks=[Callback(on_round=fail)])
    run(config, tmp_path / "broken", Serial(), resume=True)
    run(config, tmp_path / "whole", Serial(), resume=False)
    plain = configure("resnet18-cifar", "ist", settings | {"data.crops_and_flips": False})
    run(plain, tmp_path / "plain", Serial(), resume=False)
    broken, whole, other = (load_file(tmp_path / name / "model.safetensors") for name in ("broken", "whole", "plain"))
    assert all(broken[name].equal(whole[name]) for name in whole)
    assert not broken["stem.weight"].equal(other["stem.weight"])


def test_crops_and_flips_is_true_or_false(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"data\.crops_and_flips='some': expected true or false"):
        job(tmp_path, monkeypatch, **{"data.crops_and_flips": "some"})
