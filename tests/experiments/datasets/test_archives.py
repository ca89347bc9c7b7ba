"""Data sets that are one archive each."""

import archives
import numpy as np
import pytest
import torch

from skerry.experiments.datasets.archives import read_archive
from skerry.experiments.datasets.depends import debian_depends
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.speech import speech_commands_12


def test_a_missing_or_altered_archive_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("SKERRY_DATA", raising=False)
    with pytest.raises(DataError, match=r"speech_commands_12\.npz.*\bSKERRY_DATA\b"):
        read_archive("speech_commands_12.npz")
    archives.make(tmp_path, monkeypatch)
    path = tmp_path / "debian_depends.npz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=rf"{path}.*\bsha256\b"):
        read_archive("debian_depends.npz")
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}.*\bSKERRY_DATA\b"):
        read_archive("debian_depends.npz")


def test_speech_is_standardized_by_its_training_part(tmp_path, monkeypatch):
    expected = archives.make(tmp_path, monkeypatch)["speech_commands_12.npz"]
    speech = speech_commands_12()
    assert (speech.x_train.shape, speech.x_test.shape, speech.num_classes) == ((60, 16), (30, 16), 12)
    assert np.array_equal(speech.y_test.numpy(), expected["label"][expected["test"]])
    x = speech.scaling(speech.x_train)
    torch.testing.assert_close(x.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var(0, correction=0), torch.ones(16), atol=1e-4, rtol=0)


def test_rows_of_words_and_labels_are_filled_up(tmp_path, monkeypatch):
    expected = archives.make(tmp_path, monkeypatch)["debian_depends.npz"]
    task = debian_depends()
    assert (task.num_words, task.num_labels) == (40, 25)
    for table, key, first, filler in ((task.x_train, "x", 1, 0), (task.y_train, "y", 0, -1)):
        starts, values = expected[f"{key}_indptr"], expected[f"{key}_indices"]
        rows = [k for k in range(90) if not expected["test"][k]]
        for row, k in zip(table.tolist(), rows, strict=True):
            there = [v - first for v in row if v != filler]
            assert there == values[starts[k] : starts[k + 1]].tolist()
