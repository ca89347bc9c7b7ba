"""CIFAR-10 (JPEG): pixels against those that were encoded, and the cache against every way to be wrong."""

import sys

import archives
import pytest
import torch

from skerry.experiments.datasets.cifar import cifar10_jpeg
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.loading import cache_folder


def cached():
    return cache_folder("cifar10-jpeg") / "train.safetensors"


def test_images_are_those_that_were_encoded_and_standardized_by_the_training_part(tmp_path, monkeypatch):
    archives.make(tmp_path, monkeypatch)
    cifar = cifar10_jpeg()
    for x, y, (archive, pixels) in (
        (cifar.x_train, cifar.y_train, archives.cifar(60, 1)),
        (cifar.x_test, cifar.y_test, archives.cifar(30, 2)),
    ):
        assert x.dtype == torch.uint8
        assert x.shape == pixels.shape
        assert (x.double() - torch.from_numpy(pixels)).abs().mean() < 2  # two other images differ by some 80
        assert y.tolist() == archive["label"].tolist()
    z = cifar.scaling(cifar.x_train)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_decoding_happens_once_and_needs_pillow(tmp_path, monkeypatch):
    archives.make(tmp_path, monkeypatch)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "PIL", None)
        with pytest.raises(DataError, match=r"CIFAR-10.*pip install pillow"):
            cifar10_jpeg()
        assert not cached().exists()
    first = cifar10_jpeg()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "PIL", None)
        again = cifar10_jpeg()
    assert torch.equal(first.x_train, again.x_train)
    assert torch.equal(first.x_test, again.x_test)


@pytest.mark.parametrize("damage", ["pixel", "truncated", "of other files"])
def test_a_cache_that_is_not_right_is_made_again(damage, tmp_path, monkeypatch):
    archives.make(tmp_path, monkeypatch)
    first = cifar10_jpeg()
    content = cached().read_bytes()
    if damage == "pixel":
        cached().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncated":
        cached().write_bytes(content[: len(content) // 2])
    else:
        cached().write_bytes((cached().parent / "test.safetensors").read_bytes())
    assert torch.equal(cifar10_jpeg().x_train, first.x_train)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert torch.equal(cifar10_jpeg().x_train, first.x_train)  # now from the cache


def test_a_cache_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch):
    archives.make(tmp_path, monkeypatch)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cifar10-jpeg.*\bXDG_CACHE_HOME\b"):
        cifar10_jpeg()
