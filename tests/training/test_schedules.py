"""Learning-rate schedules: against their formulas."""

import pytest

from skerry import cosine
from skerry.training import constant


def test_schedules():
    assert [constant(p) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]
    assert [cosine(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])
