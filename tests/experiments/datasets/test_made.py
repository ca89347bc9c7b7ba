"""Data sets made from originals: fetched, loaded, trained on; what is there, damaged, missing or of another kind."""

import os
from functools import reduce
from operator import xor
from pathlib import Path

import numpy as np
import originals
import pytest
import torch
from originals import publish

from skerry.experiments.cli import call
from skerry.experiments.config import Config
from skerry.experiments.datasets import cache_folder, cifar10, fetch, shakespeare, speech_commands
from skerry.experiments.datasets.archives import ARCHIVES, MADE
from skerry.experiments.datasets.catalogue import CATALOGUE
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals import official
from skerry.experiments.recipes import RECIPES

QUICK = ["--set", "rounds=1", "--set", "local_steps=1", "--set", "batch_size=4", "--workers", "2"]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Return the function that writes a small official archive of a data set, and what it returns."""

    def write(name):
        path = tmp_path / f"{name}.tar.gz"
        content = {"cifar10": originals.cifar, "speech-commands": originals.speech}[name](path)
        publish(monkeypatch, {"cifar10": "CIFAR10", "speech-commands": "SPEECH_COMMANDS"}[name], path)
        return path, content

    return write


def test_cifar10_has_the_published_pixels_in_their_order(archive):
    path, parts = archive("cifar10")
    fetch("cifar10", path, say=print)
    found = cifar10()
    for part, x, y in (("train", found.x_train, found.y_train), ("test", found.x_test, found.y_test)):
        assert np.array_equal(x.numpy(), parts[part][0])
        assert np.array_equal(y.numpy(), parts[part][1])
    z = found.scaling(found.x_train)
    assert abs(z.mean()) < 1e-3
    assert abs(z.var() - 1) < 1e-3


def test_a_stranger_fetches_and_trains(archive, tmp_path):
    train = ["train", "speech-mlp2", "--out", str(tmp_path / "run"), *QUICK, "--set", "model.hidden=8"]
    code, message = call(train)
    assert code == 1
    assert "'speech-commands' is not on this machine" in message
    assert "run: skerry data fetch speech-commands --from " in message
    path, _ = archive("speech-commands")
    assert call(["data", "fetch", "speech-commands", "--from", str(path)]) == (0, "")
    assert call(train) == (0, "")
    assert '"set": "speech-commands"' in (tmp_path / "run" / "config.json").read_text()


def test_recipes_of_images_use_what_was_fetched(archive):
    path, parts = archive("cifar10")
    config = RECIPES["vgg-cifar"]().config.change({"data.images": 60, "batch_size": 10})
    with pytest.raises(DataError, match=r"'cifar10' is not on this machine.*skerry data fetch cifar10 --from"):
        RECIPES["vgg-cifar"]().build(config)
    fetch("cifar10", path, say=print)
    x, y = RECIPES["vgg-cifar"]().build(config).test
    assert y.tolist() == parts["test"][1].tolist()
    assert torch.equal(x, cifar10().scaling(torch.from_numpy(parts["test"][0])))


def test_a_recipe_uses_the_data_it_names_and_an_older_run_those_of_the_benchmarks(archive, tmp_path, monkeypatch):
    path, _ = archive("speech-commands")
    fetch("speech-commands", path, say=print)
    config = RECIPES["speech-mlp2"]().config.change({"batch_size": 2})
    assert config.data["set"] == "speech-commands"
    assert len(speech_commands().x_train) == 12
    assert RECIPES["speech-mlp2"]().build(config).model.out.out_features == 3
    (tmp_path / "speech_commands_12.npz").write_bytes(b"")
    monkeypatch.setenv("SKERRY_DATA", str(tmp_path))
    assert RECIPES["speech-mlp2"]().config.data["set"] == "speech-commands-12"
    old = Config.from_json({**config.to_json(), "data": {}})
    with pytest.raises(DataError, match=r"speech_commands_12\.npz: altered"):
        RECIPES["speech-mlp2"]().build(old)
    with pytest.raises(ValueError, match=r"data\.set 'speech'.*'speech-commands'"):
        RECIPES["speech-mlp2"]().build(config.change({"data.set": "speech"}))


@pytest.mark.parametrize("damage", ["cut", "flipped", "removed"])
def test_a_damaged_file_is_told_and_made_again(archive, damage):
    path, parts = archive("cifar10")
    made = fetch("cifar10", path, say=print) / MADE["cifar10"]
    content = bytearray(made.read_bytes())
    content[5000] ^= 1
    if damage == "removed":
        made.unlink()
    else:
        made.write_bytes(content if damage == "flipped" else content[:-5000])
    words = "not on this machine" if damage == "removed" else "damaged.*remove it and get"
    with pytest.raises(DataError, match=f"{words}.*skerry data fetch cifar10 --from"):
        cifar10()
    with pytest.raises(DataError, match="is not downloaded here; get cifar-10-binary"):
        fetch("cifar10")
    fetch("cifar10", path, say=print)
    assert np.array_equal(cifar10().x_test.numpy(), parts["test"][0])
    said = []
    fetch("cifar10", say=said.append)
    assert "nothing to do" in said[0]


@pytest.mark.parametrize("damage", ["cut", "flipped", "another", "folder", "missing"])
def test_another_archive_is_refused_in_one_line_and_leaves_nothing(archive, tmp_path, damage):
    path, _ = archive("cifar10")
    content = path.read_bytes()
    words = "cut short or altered.*get it again from https://www.cs.toronto.edu"
    if damage == "cut":
        path.write_bytes(content[:-9])
    elif damage == "flipped":
        path.write_bytes(content[:90] + bytes([content[90] ^ 1]) + content[91:])
    elif damage == "another":
        path.write_bytes(b"x" * len(content))
    else:
        path.unlink()
        words = "no such file or folder"
        if damage == "folder":
            path.mkdir()
            words = "can't be read"
    with pytest.raises(DataError, match=words) as error:
        fetch("cifar10", path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not cache_folder("cifar10").exists() or list(cache_folder("cifar10").iterdir()) == []


def test_an_official_archive_that_lacks_files_is_told(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    path.write_bytes(originals.tar({"cifar-10-batches-bin/data_batch_1.bin": bytes(3073)}))
    publish(monkeypatch, "CIFAR10", path)
    with pytest.raises(DataError, match=r"no whole train set in it.*data_batch_2\.bin"):
        fetch("cifar10", path)
    publish(monkeypatch, "SPEECH_COMMANDS", path)
    with pytest.raises(DataError, match="0 clips and 0 of the lists"):
        fetch("speech-commands", path, say=print)


def test_a_full_disk_leaves_what_was_there(archive, monkeypatch):
    path, _ = archive("cifar10")
    fetch("cifar10", path, say=print)
    made = cache_folder("cifar10") / MADE["cifar10"]
    made.write_bytes(b"damaged")

    def full(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", lambda *args, **kwargs: full())
        with pytest.raises(DataError, match=r"cifar10\.npz: can't be written \(No space left on device\)"):
            fetch("cifar10", path)
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    assert made.read_bytes() == b"damaged"


def test_any_text_is_split_into_characters(tmp_path):
    text = "To be, or not to be: thät is the question.\n" * 50
    (tmp_path / "hamlet.txt").write_text(text, encoding="utf-8")
    said = list[str]()
    fetch("shakespeare", tmp_path / "hamlet.txt", say=said.append)
    fetch("shakespeare", say=said.append)
    assert ["fetched" in said[0], "already" in said[1], "verified" in "".join(said)] == [True, True, False]
    found = shakespeare()
    whole = "".join(found.vocabulary[k] for k in [*found.train.tolist(), *found.val.tolist()])
    assert whole == text
    assert list(found.vocabulary) == sorted(set(text))
    assert len(found.val) == len(text) // 10
    (tmp_path / "hamlet.txt").write_text(text.upper(), encoding="utf-8")
    fetch("shakespeare", tmp_path / "hamlet.txt", say=print)  # another text that is given is used
    assert "T" in shakespeare().vocabulary
    assert "t" not in shakespeare().vocabulary
    for content, words in ((b"\xff\xfe", "not a text in UTF-8"), (b"short", "5 characters, expected at least 1000")):
        (tmp_path / "hamlet.txt").write_bytes(content)
        with pytest.raises(DataError, match=rf"hamlet\.txt: {words}"):
            fetch("shakespeare", tmp_path / "hamlet.txt")
    assert "T" in shakespeare().vocabulary


def test_the_page_on_data_has_the_address_and_the_checksum_of_each_original():
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for known in (official.CIFAR10, official.SPEECH_COMMANDS):
        assert f"| `{known.file}` | {known.url} | {known.num_bytes:,} | `{known.sha256}` |" in page
    assert official.PLANETOID_URL in page
    assert f"{official.SHAKESPEARE_URL} | 1,115,394 | `{ARCHIVES['tinyshakespeare.txt']}`" in page
    assert all(f"`{name}`" in page for name in (*CATALOGUE, *MADE))


def test_published_checksums_of_graphs_are_those_that_another_project_gives_for_all_files_at_once():
    together = {
        "cora": "81de017067dc045ebdb8ffd5c0e69a209973ffdb1fe2d5b434e94d3614f3f5c7",  # MLDatasets.jl: exclusive or
        "citeseer": "7f7ec4df97215c573eee316de35754d89382011dfd9fb2b954a4a491057e3eb3",
    }
    for name, files in official.PLANETOID.items():
        assert f"{reduce(xor, (int(file.sha256, 16) for file in files.values())):064x}" == together[name]
