"""WordNet's graph against one drawn by hand, in its files' format; other versions and damaged files are refused."""

import numpy as np
import pytest
from originals import deb

from skerry.experiments.datasets import fetch
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.graphs import wordnet as load
from skerry.experiments.datasets.originals import wordnet
from skerry.experiments.datasets.originals.wordnet import graph

LICENCE = "  1 This software and database  \n"
TEXTS = {
    "data.noun": """00000001 03 n 02 it 0 all 1 003 ~ 00000009 n 0000 + 00000001 v 0101 ~ 00000001 n 0000 | a THING "a"
00000009 18 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 @ 00000001 n 0000 | a man
""",
    "data.verb": "00000001 29 v 01 do 0 001 + 00000001 n 0101 01 + 02 00 | do things\n",
    "data.adj": """00000001 00 s 01 fine 0 001 & 00000007 a 0000 | a fine
00000007 44 a 01 good 0 001 & 00000001 s 0000 | a
""",
    "data.adv": "00000004 02 r 01 well 0 000 | man, a\n",
}
BYTES = {file: (LICENCE + text).encode() for file, text in TEXTS.items()}


@pytest.fixture
def _other_version(monkeypatch):
    monkeypatch.setattr(wordnet, "GLOSSES_WITH_A_WORD", 2)
    monkeypatch.setattr(wordnet, "SHA256", "no")


@pytest.mark.usefixtures("_other_version")
def test_the_graph_is_the_one_drawn(tmp_path):
    arrays = graph(BYTES, tmp_path)
    assert arrays["label"].tolist() == [3, 18, 29, 0, 44, 2]
    assert arrays["edges"].tolist() == [[0, 0, 3], [1, 2, 4]]  # once, none to itself
    words = ["a", "man"]  # the words of two glosses; upper case and repetitions count for nothing
    rows = np.split(arrays["x_indices"], arrays["x_indptr"][1:-1])
    assert [[words[k] for k in row] for row in rows] == [["a"], ["a", "man"], [], ["a"], ["a"], ["a", "man"]]
    assert sorted(arrays["split"].tolist()) == [0, 0, 0, 1, 2, 2]


@pytest.mark.usefixtures("_other_version")
def test_from_a_folder_or_a_package_and_only_of_the_known_version(tmp_path, monkeypatch):
    folder, package = tmp_path / "folder", tmp_path / "wordnet-base.deb"
    folder.mkdir()
    for file, content in BYTES.items():
        (folder / file).write_bytes(content)
    package.write_bytes(deb({f"usr/share/wordnet/{file}": content for file, content in BYTES.items()}))
    for source in (folder, package):
        with pytest.raises(DataError, match=r"another WordNet, 6 synsets and 3 relations.*wordnet-base 1:3\.0-37"):
            fetch("wordnet", source, tmp_path / "target")
    assert not (tmp_path / "target" / "wordnet.npz").exists()
    monkeypatch.setattr(wordnet, "_checked", lambda arrays, where: arrays)
    for source in (folder, package):
        path = fetch("wordnet", source, tmp_path / source.name[:3], say=print) / "wordnet.npz"
        with np.load(path) as arrays:
            assert {k: a.tolist() for k, a in arrays.items()} == {
                k: a.tolist() for k, a in graph(BYTES, source).items()
            }
    fetch("wordnet", folder, say=print)
    found = load()
    assert (found.num_features, found.num_classes, found.edge_index().shape) == (2, 45, (2, 6))
    nodes = found.test.nonzero().flatten()
    assert found.x(nodes).sum(1).tolist() == (found.starts[nodes + 1] - found.starts[nodes]).tolist()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("data.verb", None, "no data.verb"),
        ("data.noun", b"no WordNet", "data.noun is not in WordNet's format"),
        ("data.verb", BYTES["data.verb"][:60], "data.verb is not in WordNet's format"),
        ("data.adj", LICENCE.encode(), "the files are damaged"),
    ],
)
def test_damaged_files_are_told_in_one_line(tmp_path, file, content, words):
    files = {**BYTES, file: content}
    if content is None:
        del files[file]
    elif file == "data.adj":
        files["data.noun"] = files["data.noun"].replace(b"00000001 v", b"00000002 v")
    with pytest.raises(DataError, match=words):
        graph(files, tmp_path)


def test_without_apt_another_way_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get is not installed.*skerry data fetch wordnet --from PATH"):
        fetch("wordnet")
    with pytest.raises(DataError, match=r"data\.noun: No such file"):
        fetch("wordnet", tmp_path)
