"""``load`` against tiny sets in each place it looks: whole, damaged, of a wrong name; digits are real."""

import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch

from skerry.experiments.datasets.catalogue import CATALOGUE, FILES
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.loading import cache_folder, load

IMAGES = FILES["x_train"]


def message_of(name: str, folder: Path | None) -> str:
    with pytest.raises(DataError) as caught:
        load(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("place", ["folder", "folder/mnist", "env", "env/mnist", "cache"])
def test_load_from_each_place(place, gz, tmp_path, put, tiny, monkeypatch):
    folder = None
    if place == "cache":
        put("mnist", cache_folder("mnist"), gz)
    else:
        put("mnist", tmp_path / place, gz)
    if place.startswith("env"):
        monkeypatch.setenv("SKERRY_DATA", str(tmp_path / "env"))
    if place.startswith("folder"):
        folder = tmp_path / "folder"
    data = load("mnist", folder)
    for key in FILES:
        np.testing.assert_array_equal(getattr(data, key), tiny["mnist"][key])
    assert (data.name, data.num_classes, data.mean, data.std) == ("mnist", 10, 0.5, 0.25)
    assert (data.x_train.dtype, data.y_train.dtype) == (np.uint8, np.int64)
    torch.from_numpy(data.x_train)  # warns of a read-only array


def test_order_of_places(tmp_path, put, monkeypatch):
    """The first complete place is used: damage it, and the error names it, until it is taken away."""
    env, folder, cache = tmp_path / "env", tmp_path / "folder", cache_folder("mnist")
    monkeypatch.setenv("SKERRY_DATA", str(env))
    order = [folder / "mnist", folder, env / "mnist", env, cache]
    for place in order:
        (put("mnist", place) / IMAGES).write_bytes(b"damaged")
    for place in order:
        assert str(place / IMAGES) in message_of("mnist", folder)
        (place / IMAGES).unlink()  # what the message says; the place is incomplete now and passed over
    text = message_of("mnist", folder)
    assert IMAGES in text
    assert all(str(place) in text for place in order)


def test_missing_says_where_it_looked_and_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SKERRY_DATA", str(tmp_path / "env"))
    text = message_of("fashion-mnist", tmp_path / "mine")
    for place in (tmp_path / "mine", tmp_path / "env" / "fashion-mnist", cache_folder("fashion-mnist")):
        assert str(place) in text
    assert "skerry data fetch fashion-mnist" in text


def test_the_other_data_set_is_refused(tmp_path, put):
    text = message_of("fashion-mnist", put("mnist", tmp_path))
    for name in (str(tmp_path / IMAGES), "x_train", "'mnist'", "'fashion-mnist'"):
        assert name in text


def test_both_data_sets_in_subfolders_of_one_place(tmp_path, put, tiny, monkeypatch):
    monkeypatch.setenv("SKERRY_DATA", str(put("mnist", tmp_path)))
    put("fashion-mnist", tmp_path / "fashion-mnist")
    for name in ("mnist", "fashion-mnist"):
        np.testing.assert_array_equal(load(name).x_train, tiny[name]["x_train"])


def test_exchanged_files_are_refused(tmp_path, put):
    """Right count and shape are not enough: the labels of another data set would train in silence."""
    put("mnist", tmp_path)
    put("fashion-mnist", tmp_path / "other")
    labels = FILES["y_test"]
    (tmp_path / "other" / labels).rename(tmp_path / labels)
    text = message_of("mnist", tmp_path)
    for name in (str(tmp_path / labels), "y_test", "'mnist'", "'fashion-mnist'"):
        assert name in text


@pytest.mark.parametrize("file", FILES.values())
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damage_names_file_and_remedy(file, damage, tmp_path, put):
    path = put("mnist", tmp_path) / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-1])
    text = message_of("mnist", tmp_path)
    size = len(content) - 4 - 4 * content[3]  # without the header
    figures = {"sha256"} if damage == "flip" else {str(size - 1), str(size)}
    assert str(path) in text
    assert figures <= set(text.replace(",", " ").split())
    assert "skerry data fetch mnist" in text


def test_truncated_gzip_names_the_file(tmp_path, put):
    path = put("mnist", tmp_path, gz=True) / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-10])
    assert str(path) in message_of("mnist", tmp_path)


def test_wrong_shape_with_the_right_bytes(tmp_path, put, tiny):
    path = put("mnist", tmp_path) / IMAGES
    path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 12, 0, 0, 0, 16]) + tiny["mnist"]["x_train"].tobytes())
    text = message_of("mnist", tmp_path)
    for name in (str(path), "(12, 16)", "(12, 4, 4)"):
        assert name in text


def test_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match=r"'fashon-mnist'.*'fashion-mnist'"):
        load("fashon-mnist")
    with pytest.raises(ValueError, match=r"'zzz'.*\bfashion-mnist\b.*\bmnist\b.*\bdigits\b"):
        load("zzz")


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("mnist") == tmp_path / "skerry" / "mnist"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("mnist") == tmp_path / "home" / ".cache" / "skerry" / "mnist"


def test_digits_are_scikit_learns_split_without_loss():
    from sklearn.datasets import load_digits

    data = load("digits")
    together = np.concatenate([data.x_train, data.x_test]).reshape(1797, 64)
    x, y = load_digits(return_X_y=True)
    expected = np.rint(x * 255 / 16)
    rows = sorted(
        (*row, label) for row, label in zip(together, np.concatenate([data.y_train, data.y_test]), strict=True)
    )
    assert rows == sorted((*row, label) for row, label in zip(expected, y, strict=True))
    assert (data.x_train.max(), len(data.x_test)) == (255, 360)
    assert (data.mean, data.std) == pytest.approx(((data.x_train / 255).mean(), (data.x_train / 255).std()))


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "pip install scikit-learn" in message_of("digits", None)


def test_digits_that_scikit_learn_keeps_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr("skerry.experiments.datasets.loading.scikit_learn_folder", lambda: tmp_path)
    text = message_of("digits", None)
    assert str(tmp_path) in text
    assert "digits.csv.gz" in text


def test_digits_are_verified(monkeypatch):
    monkeypatch.setitem(CATALOGUE, "digits", CATALOGUE["mnist"])
    text = message_of("digits", None)
    for name in ("scikit-learn", "x_train", "(1437, 8, 8)", "(12, 4, 4)"):
        assert name in text


def test_a_dataset_is_frozen():
    with pytest.raises(FrozenInstanceError):
        load("digits").mean = 0.0  # type: ignore[misc]
