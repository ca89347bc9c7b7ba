"""``split`` against what it promises: a partition of the samples, pure in its arguments, skewed as asked."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from skerry.data.splits import split

hows = st.sampled_from(["iid", "by_label"]) | st.floats(1e-6, 1e6).map(lambda alpha: f"dirichlet:{alpha!r}")
label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=60)


def skewed_labels(num: int = 1000) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 10, num)


@settings(deadline=None)
@given(label_lists, hows, st.integers(), st.data())
def test_every_sample_goes_to_exactly_one_worker(labels: list[int], how: str, seed: int, data: st.DataObject):
    num_workers = data.draw(st.integers(1, len(labels)))
    parts = split(np.array(labels), num_workers, how, seed)
    assert len(parts) == num_workers
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    for part in parts:
        assert part.dtype == torch.int64
        assert len(part) >= 1
        assert part.tolist() == sorted(part.tolist())


@settings(deadline=None)
@given(label_lists, hows, st.integers())
def test_pure_in_its_arguments(labels: list[int], how: str, seed: int):
    array, num_workers = np.array(labels), min(3, len(labels))
    before = array.copy()
    first, again = split(array, num_workers, how, seed), split(array, num_workers, how, seed)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("how", ["iid", "by_label", "dirichlet:0.3"])
def test_tensors_of_any_integer_type_split_as_arrays(how: str):
    labels = skewed_labels(50)
    expected = split(labels, 4, how, seed=1)
    for other in (
        labels.astype(np.uint8),
        torch.from_numpy(labels),
        torch.from_numpy(labels).to(torch.int32),
    ):
        assert all(torch.equal(a, b) for a, b in zip(expected, split(other, 4, how, seed=1), strict=True))


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.3"])
def test_seeds_differ(how: str):
    labels = skewed_labels()
    assert not torch.equal(split(labels, 4, how, seed=0)[0], split(labels, 4, how, seed=1)[0])


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(7, 50))
def test_iid_and_by_label_are_even(num_workers: int, num: int):
    for how in ("iid", "by_label"):
        sizes = [len(part) for part in split(skewed_labels(num), num_workers, how, seed=0)]
        assert max(sizes) - min(sizes) <= 1


def test_by_label_is_in_order_of_class():
    labels = skewed_labels()
    parts = split(labels, 4, "by_label", seed=0)
    ranges = [(labels[part.numpy()].min(), labels[part.numpy()].max()) for part in parts]
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))


def class_skew(how: str) -> float:
    """Return the mean over workers of the share of their most frequent class: 0.1 is none, 1 is complete."""
    labels = np.repeat(np.arange(10), 400)
    parts = split(labels, 4, how, seed=0)
    return float(np.mean([np.bincount(labels[part.numpy()]).max() / len(part) for part in parts]))


def test_smaller_alpha_is_more_skewed_and_large_alpha_is_as_iid():
    assert class_skew("dirichlet:1e5") == pytest.approx(class_skew("iid"), abs=0.03)
    assert class_skew("dirichlet:1e5") < class_skew("dirichlet:1") < class_skew("dirichlet:0.05")


def test_alpha_is_a_number_not_a_spelling():
    labels = skewed_labels()
    pairs = zip(split(labels, 4, "dirichlet:0.3", 0), split(labels, 4, "dirichlet:.30", 0), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_worker_that_drew_nothing_gets_a_sample():
    # At this alpha one worker takes the only class whole.
    sizes = [len(part) for part in split(np.zeros(20, np.int64), 5, "dirichlet:1e-6", seed=0)]
    assert sorted(sizes) == [1, 1, 1, 1, 16]


@pytest.mark.parametrize("how", ["", "IID", "random", "dirichlet", "iid:0.3", "by_label:"])
def test_unknown_how_names_the_choices(how: str):
    with pytest.raises(ValueError, match=rf"'{how}'.*'iid'.*'by_label'.*'dirichlet:ALPHA'"):
        split(skewed_labels(), 4, how, seed=0)


@pytest.mark.parametrize("alpha", ["", "x", "0", "-1", "nan", "inf", "1e7"])
def test_bad_alpha_names_the_choices(alpha: str):
    with pytest.raises(ValueError, match=rf"'dirichlet:{alpha}'.*'{alpha}'.*'dirichlet:ALPHA'"):
        split(skewed_labels(), 4, f"dirichlet:{alpha}", seed=0)


def test_more_workers_than_samples_and_none():
    with pytest.raises(ValueError, match=r"(?=.*\b4\b)(?=.*\b3\b).*num_workers"):
        split(np.array([0, 1, 2]), 4, "iid", seed=0)
    with pytest.raises(ValueError, match=r"num_workers\b.*\b0\b"):
        split(np.array([0, 1, 2]), 0, "iid", seed=0)


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.zeros(2, 2, dtype=torch.int64)])
def test_labels_must_be_one_dim_of_integers(labels: torch.Tensor):
    with pytest.raises(ValueError, match=rf"labels.*\({labels.shape[0]},.*\(num_samples,\)"):
        split(labels, 1, "by_label", seed=0)


def test_an_iid_deal_takes_any_targets():
    parts = split(torch.rand(7, 2), 3, "iid", 0)
    assert sorted(torch.cat(parts).tolist()) == list(range(7))
