"""What warnings advise, for every method: never what a run has already, and never nothing."""

import re

import pytest
import torch
from overlapping import Overlapping
from torch import nn
from torch.nn import functional as F
from zoo import mlp

from skerry import Session, cosine, discover, ensemble, ist, narrow, relay
from skerry.algorithm import Algorithm
from skerry.algorithms import diloco, federated_dropout, fedrolex, heterofl, local_sgd
from skerry.training import constant
from skerry.training.diagnosis.remedies import REMEDIES, advice, situation_of
from skerry.training.diagnosis.theory_warnings import CHECKS

FRACTIONS = [0.5, 0.5, 0.5]


class Shared(nn.Module):
    """Its subnets share a stream, so they are no nets of their own."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer, self.out = (nn.Linear(*s) for s in ((9, 8), (8, 8), (8, 8), (8, 4)))

    def forward(self, x):
        x = self.stem(x)
        return self.out(x + self.outer(F.relu(self.inner(x))))


def shared():
    model = Shared()
    return model, discover(model, torch.randn(4, 9)).only("inner"), None


RUNS = {
    "ist": (ist(3), {}),
    "ist of 2": (ist(2), {}),
    "ist, core": (ist(3, core=0.2), {}),
    "ist, one step": (ist(3, local_steps=1), {}),
    "ist, cosine": (ist(3), {"schedule": cosine}),
    "ist, priors": (ist(3), {"has_priors": True}),
    "ist, own loop": (ist(3), {"has_priors": None}),
    "ist, shared": (ist(3), {"build": shared}),
    "relay": (relay(3), {}),
    "ensemble": (ensemble(3), {}),
    "narrow": (narrow(3), {}),
    "local_sgd": (local_sgd(3), {}),
    "diloco": (diloco(3), {}),
    "federated_dropout": (federated_dropout(3, fractions=FRACTIONS), {}),
    "fedrolex": (fedrolex(3, fractions=FRACTIONS), {}),
    "own": (Algorithm(name="own", partition=Overlapping(3, 2), local_steps=20), {}),
    "heterofl": (heterofl(3, fractions=FRACTIONS), {}),
}
TAKEN = {
    r"cosine": ["ist, cosine"],
    r"fewer local_steps": ["ist, one step"],
    r"log_priors": ["ist, priors"],
    r"narrow\b": ["narrow"],
    r"narrow or local_sgd": ["narrow", "local_sgd", "diloco"],
    r"relay or ensemble": ["relay", "ensemble", "ist, shared"],
    r"\bist\b": [name for name in RUNS if name.startswith("ist")],
    r"\ba core that": ["ist, core"],
    r"fewer workers": ["ist of 2"],
}
"""What may be advised, and who has it already, or cannot have it."""
SETTINGS = {
    r"larger fractions": {"federated_dropout", "fedrolex", "heterofl"},
    r"larger step": {"fedrolex"},
    r"larger core": {"ist, core"},
    r"a larger width": {"narrow"},
}
"""Settings that only some methods have."""
ALWAYS = {
    "a lower learning rate", "more similar data for the workers", "mixed data (split=iid)", "more rounds",
    "some data that all workers have", "more workers", "gradients that are clipped", "a look at the data",
    "a look at data and labels", "another learning rate",
}  # fmt: skip
"""What can be taken further."""


def situation(name):
    algorithm, more = RUNS[name]
    model, plan, _ = more.get("build", lambda: mlp(norm=False, hidden=(24,)))()
    session = Session(
        model, plan=plan, algorithm=algorithm, num_rounds=9,
        optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.1),
        schedule=more.get("schedule", constant),
    )  # fmt: skip
    return situation_of(session.setup, plan, more.get("has_priors", False))


@pytest.fixture(scope="module")
def advised():
    """For each run and kind the advice."""
    runs = {name: situation(name) for name in RUNS}
    return {name: {kind: advice(kind, run, axis="h0", rounds=9) for kind in REMEDIES} for name, run in runs.items()}


def test_every_kind_of_warning_has_remedies_in_every_run(advised):
    assert REMEDIES.keys() == CHECKS.keys()
    for name, texts in advised.items():
        for kind, text in texts.items():
            assert re.fullmatch(r"try [a-z][^;]+", text), (name, kind)


@pytest.mark.parametrize("words", TAKEN)
def test_what_a_run_has_already_is_not_advised(advised, words):
    offered = {name for name, texts in advised.items() if re.search(words, " | ".join(texts.values()))}
    assert not offered & set(TAKEN[words])
    assert offered


@pytest.mark.parametrize("words", SETTINGS)
def test_a_setting_is_advised_where_the_method_has_it(advised, words):
    offered = {name for name, texts in advised.items() if re.search(words, texts["coverage"] + texts["bottleneck"])}
    assert offered == SETTINGS[words]


def test_in_a_loop_of_ones_own_priors_are_advised_with_an_if(advised):
    assert re.search(r"log_priors.* if ", advised["ist, own loop"]["label skew"])
    assert not re.search(r"log_priors.* if ", advised["ist"]["label skew"])


def test_every_remedy_is_offered_to_some_runs_and_only_those_without_end_to_all():
    runs = [situation(name) for name in RUNS]
    for kind, remedies in REMEDIES.items():
        for text, is_left in remedies:
            left = {is_left(run) for run in runs}
            assert True in left, (kind, text)
            assert (left == {True}) == (text in ALWAYS), (kind, text)
