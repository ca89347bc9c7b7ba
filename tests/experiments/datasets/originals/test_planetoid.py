"""Planetoid's files against the graphs they were made from; pickles that would run code, other files, damaged ones."""

import contextlib
import hashlib
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from originals import pickled, planetoid

from skerry.experiments.datasets import citeseer, cora, fetch
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals import official
from skerry.experiments.datasets.originals import planetoid as originals
from skerry.experiments.datasets.originals.pickles import array, csr_matrix, lists, parse

ORDER = [27, 22, 24, 29, 25, 26, 20]  # the test nodes; nobody describes 21, 23 and 28


FORESEEN = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError)  # what is told in one line


def small_graph():
    rng, lengths = np.random.default_rng(0), np.arange(30) % 5
    lengths[[21, 23, 28]] = 0
    edges = sorted({(min(pair), max(pair)) for pair in rng.integers(0, 30, (40, 2)).tolist() if pair[0] != pair[1]})
    nodes = np.arange(30)
    return {
        "x_indptr": np.cumsum([0, *lengths]).astype(np.int32),
        "x_indices": np.concatenate([np.sort(rng.choice(300, n, replace=False)) for n in lengths]).astype(np.int32),
        "x_data": np.ones(lengths.sum(), np.float32),
        "x_shape": np.array([30, 300]),
        "edges": np.array(edges, np.int32).T,
        "label": np.where(np.isin(nodes, [21, 23, 28]), -1, nodes % 3).astype(np.int16),
        "train": nodes < 6,
        "val": (nodes >= 6) & (nodes < 11),
        "test": np.isin(nodes, ORDER),
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with the files of ``small_graph``, which count as the official ones of CiteSeer."""
    monkeypatch.setattr(originals, "VALIDATION", 5)
    folder = tmp_path / "CiteSeer" / "raw"
    folder.mkdir(parents=True)
    files = {}
    for part, content in planetoid(small_graph(), ORDER).items():
        (folder / f"ind.citeseer.{part}").write_bytes(content)
        files[part] = replace(official.PLANETOID["citeseer"][part], sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(official.PLANETOID, "citeseer", files)
    return folder


def test_the_graph_is_the_one_that_the_files_were_made_from(folder, tmp_path):
    expected = small_graph()
    for source in (folder, folder.parent, tmp_path):  # the files, PyG's folder of the data set, its root
        got = originals.planetoid("citeseer", source)
        assert got.keys() == expected.keys()
        for key, values in expected.items():
            np.testing.assert_array_equal(got[key], values, key)
            assert got[key].dtype == values.dtype
    fetch("citeseer", tmp_path, say=print)
    graph = citeseer()
    assert graph.label.tolist() == expected["label"].tolist()
    dense = np.zeros((30, 300))
    dense[np.arange(30).repeat(np.diff(expected["x_indptr"])), expected["x_indices"]] = 1
    some = graph.test.nonzero().flatten()
    assert np.array_equal(graph.x(some).numpy(), dense[some])
    with pytest.raises(DataError, match=r"'cora' is not on this machine.*ind\.cora\.\*.*--from FOLDER"):
        cora()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_another_file_than_the_published_one_is_refused(folder, damage):
    path = folder / "ind.citeseer.graph"
    content = path.read_bytes()
    path.write_bytes(content[:-1] if damage == "cut" else content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(DataError, match=r"ind\.citeseer\.graph: not ind\.citeseer\.graph, or cut short or altered"):
        fetch("citeseer", folder)


def test_a_missing_file_or_folder_is_told(folder, tmp_path):
    with pytest.raises(DataError, match=r"no ind\.cora\.graph in it.*skerry data fetch cora --from FOLDER"):
        fetch("cora", folder)
    with pytest.raises(DataError, match="'cora' is not downloaded here; get the files"):
        fetch("cora")
    (folder / "ind.citeseer.tx").unlink()
    with pytest.raises(DataError, match=r"ind\.citeseer\.tx: can't be read"):
        fetch("citeseer", folder)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_nothing_in_a_pickle_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        evil = pickle.dumps([Evil()], protocol)
        for use in (lambda p: p, array, csr_matrix, lists):
            with contextlib.suppress(FORESEEN):
                use(parse(evil))
    assert not (tmp_path / "ran").exists()


def test_no_damaged_pickle_raises_anything_unforeseen():
    whole = pickled("matrix", np.ones(2, np.float32), np.array([0, 1], np.int32), np.array([0, 2], np.int32), (1, 3))
    assert csr_matrix(parse(whole))[3] == (1, 3)
    for at in range(len(whole)):
        for byte in b"\x00\xff0(.RbutsehqK\x81\x85}]":
            with contextlib.suppress(FORESEEN):
                csr_matrix(parse(whole[:at] + bytes([byte]) + whole[at + 1 :]))
        with pytest.raises(FORESEEN):
            csr_matrix(parse(whole[:at]))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (([1.0], [3], [0, 1], (1, 3)), "do not fit"),  # a column too many
        (([1.0], [0], [0, 2], (1, 3)), "do not fit"),
        (([1.0, 1.0], [0, 1], [0, 2, 1, 2], (3, 3)), "do not fit"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(parts, words):
    data, indices, indptr, shape = parts
    content = pickled("matrix", *(np.array(a, d) for a, d in ((data, "f4"), (indices, "i4"), (indptr, "i4"))), shape)
    with pytest.raises(ValueError, match=words):
        csr_matrix(parse(content))


def test_lists_of_integers():
    found = {0: [1, 2], 300: [], 2: [65_535]}
    assert lists(parse(pickled("lists", found))) == found
    assert lists(parse(pickle.dumps(found, 2))) == found
    with pytest.raises(ValueError, match="expected collections defaultdict"):
        lists(parse(pickled("array", np.ones((2, 2)))))
