"""bench/faults.py: a run in which the fault had no effect is told."""

from types import SimpleNamespace

import pytest

NUM, ROUNDS, SHARE = 4, 16, 16


@pytest.fixture(scope="module")
def judged(load_script):
    script = load_script("faults.py")

    def problems(fault, missing, changes=()):
        end = {"what": "end", "t": 2.0, "loss": 0.5, "accuracy": 0.9, "trained": ROUNDS * script.UNITS - missing}
        own = [{"what": "member", "t": 0.0, "uid": "victim"}, {"what": "fault", "t": 1.0}, end]
        told = [{"what": "change", "t": 2.0, "members": [], **change} for change in changes]
        members = [[*told, end]] * (NUM - 1) + [own]
        run = SimpleNamespace(num=NUM, members=members, events=lambda k: members[k], setup={"rounds": ROUNDS})
        return script._judged(run, fault, NUM - 1, [])["problems"]

    return problems


def test_a_round_of_nan_that_nobody_refused_is_told(judged):
    assert judged("nan", SHARE) == []
    assert judged("nan", 0) == ["0 unit-rounds refused"]
    assert "60 unit-rounds refused" in judged("nan", 60)


def test_who_was_late_and_stayed_or_stays_away_is_told(judged):
    gone = {"round": 7, "lost": SHARE, "gone": ["victim"], "joined": []}
    back = {"round": 8, "lost": 0, "gone": [], "joined": ["victim"]}
    assert judged("late", SHARE, [gone, back]) == []
    assert judged("late", SHARE, [gone]) == ["did not come in again"]
    assert judged("late", 0) == ["was not left out"]
    assert judged("late", SHARE, [gone | {"gone": ["another"]}, back]) == ["was not left out"]
