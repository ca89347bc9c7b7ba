"""Predictors: raw samples in, classes out, a batch at a time; samples unlike those of the training are named."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from skerry.predictor import Predictor, Scaling, Signature

IMAGES = Signature(
    shape=(3, 2, 2),
    dtype="uint8",
    scaling=Scaling(torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), 0.5, divisor=255),
    classes=("cat", "dog"),
    sizes={"inputs": 12},
)
WORDS = Signature(shape=(5,), dtype="int64", classes=4)
NUMBERS = Signature(shape=(2,), dtype="float32")
SHORT = Signature(shape=(2,), dtype="int16", scaling=Scaling(0, 1))


class Watched(nn.Module):
    """Keeps what it was called with; logits are sums of weighted inputs."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.seen = []

    def forward(self, x):
        assert not self.training
        self.seen.append(x)
        x = x.flatten(1).float()
        return x @ self.weight[:, : x.shape[1]].T


def images(num=10):
    return np.random.default_rng(0).integers(0, 256, (num, 3, 2, 2), dtype=np.uint8)


def test_the_model_sees_scaled_batches_and_never_more_at_once(tmp_path):
    np.save(tmp_path / "x.npy", images())
    model, x = Watched(12, 2), torch.from_numpy(images())
    predictor = Predictor(model.train(), IMAGES, name="trial")
    named = predictor.predict(np.load(tmp_path / "x.npy", mmap_mode="r"), batch_size=4)
    assert [len(part) for part in model.seen] == [4, 4, 2]
    mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(torch.cat(model.seen), (x / 255 - mean) / 0.5)
    logits = predictor.outputs(x)
    assert named.tolist() == [("cat", "dog")[k] for k in logits.argmax(1)]
    np.testing.assert_allclose(predictor.predict_proba(x), logits.softmax(1).numpy())
    arrays = [images().astype(dtype) for dtype in ("i8", "u2", "u4", "u8", ">i4", ">u2")]
    for same in (images().tolist(), x, *arrays, list(images())):
        assert predictor.predict(same, batch_size=3).tolist() == named.tolist()


def test_numbers_where_there_are_no_names_and_outputs_where_there_are_no_classes():
    words = Predictor(Watched(9, 4), WORDS, name="trial")
    x = torch.randint(0, 9, (6, 5))
    found = words.predict(x)
    assert found.dtype == np.int64
    assert found.tolist() == words.outputs(x).argmax(1).tolist()
    assert words.predict(torch.randint(0, 9, (6, 9), dtype=torch.int32)).shape == (6,)  # more words than in training
    numbers = Predictor(Watched(2, 3), NUMBERS, name="trial")
    found = numbers.predict([[1, 2], [3, 4.5]])
    assert found.shape == (2, 3)
    with pytest.raises(ValueError, match="not classes"):
        numbers.predict_proba([[1.0, 2.0]])


@pytest.mark.parametrize(
    ("signature", "x", "names"),
    [
        (IMAGES, images()[0], r"\(2, 2\).*\(3, 2, 2\).*x\[None\]"),
        (IMAGES, images().transpose(0, 2, 3, 1), r"\(2, 2, 3\).*\(3, 2, 2\)"),
        (IMAGES, images()[:, :1], r"\(1, 2, 2\).*\(3, 2, 2\)"),  # would be broadcast
        (IMAGES, images() / 255, r"float64.*uint8.*not scaled"),
        (IMAGES, images().astype(np.int32) - 300, r"-\d+ to -\d+.*0 to 255"),
        (IMAGES, images().astype(np.uint16) + 256, r"\d+ to \d+.*0 to 255"),
        (IMAGES, images() * 1j, r"complex.*uint8"),
        (SHORT, [[70000, 1]], r"1 to 70000.*-32768 to 32767"),
        (WORDS, np.full((2, 5), 2**63, dtype=np.uint64), r"expected .*int64"),
        (IMAGES, [["a", "b"]], r"<U1.*uint8"),
        (IMAGES, images()[:0], r"\(0, 3, 2, 2\).*at least one"),
        (IMAGES, 3, r"\(\).*at least one"),
        (WORDS, torch.ones(2, 5), r"float32.*int64"),
        (WORDS, torch.ones(2, 5, 1, dtype=torch.int64), r"\(5, 1\).*\(5,\)"),
        (NUMBERS, torch.ones(2, 3), r"\(3,\).*\(2,\)"),
    ],
)
def test_samples_unlike_those_of_the_training_are_named(signature, x, names):
    predictor = Predictor(Watched(12, 4), signature, name="trial")
    with pytest.raises(ValueError, match=names) as error:
        predictor.predict(x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("x", [[[99] * 5], [[-1] * 5], [[1] * 6]], ids=["token", "negative", "width"])
def test_samples_that_the_model_does_not_take_are_named(x):
    model = nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(15, 4))
    with pytest.raises(ValueError, match=r"x: the model does not run on inputs int64 \(1, \d\).*\(5,\)") as error:
        Predictor(model, WORDS, name="trial").predict(x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_what_is_no_class_is_refused(method):
    two = Predictor(nn.Linear(2, 2), replace(NUMBERS, classes=2), name="trial")
    x = torch.randn(5, 2)
    x[[0, 3], 1] = torch.nan
    with pytest.raises(ValueError, match=r"trial: the outputs of 2 of 5 samples are NaN"):
        getattr(two, method)(x, batch_size=2)
    pixels = Predictor(nn.Conv2d(1, 4, 1), Signature(shape=(1, 3, 3), dtype="float32", classes=4), name="trial")
    x = torch.randn(2, 1, 3, 3)
    with pytest.raises(ValueError, match=r"trial: outputs of shape \(2, 4, 3, 3\), .*outputs\(x\)"):
        getattr(pixels, method)(x)
    assert torch.equal(pixels.outputs(x), pixels.model(x))


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"std": torch.tensor([1.0, 0.0, torch.nan])}, r"std: 2 of 3 entries are 0 or not finite.*clamp\(min="),
        ({"mean": torch.inf}, r"mean: 1 of 1 entries are not finite"),
        ({"divisor": 0}, r"divisor: 1 of 1 entries are 0 or"),
    ],
)
def test_a_scaling_that_would_give_no_numbers_is_refused(wrong, names):
    with pytest.raises(ValueError, match=names):
        Scaling(**{"mean": 0.0, "std": 1.0} | wrong)


def test_a_model_with_other_outputs_than_classes_is_named():
    with pytest.raises(ValueError, match=r"trial: 3 outputs for 2 classes"):
        Predictor(Watched(12, 3), IMAGES, name="trial").predict(images())


@pytest.mark.parametrize("signature", [IMAGES, WORDS, NUMBERS])
def test_signatures_survive_json_to_the_bit(signature):
    again = Signature.from_json(json.loads(json.dumps(signature.to_json())))
    assert again.to_json() == signature.to_json()
    for name in ("shape", "dtype", "classes", "sizes"):
        assert getattr(again, name) == getattr(signature, name)
    if signature.scaling is not None:
        x = torch.from_numpy(images())
        assert torch.equal(again.scaling(x), signature.scaling(x))
