"""What leaves a site, against the list in docs/federated.md: of labels only what weights and loss tell."""

import json
from functools import partial

import pytest
import torch
from federation import ROUNDS, STEPS, arguments, assert_same, federated
from made_sites import MadeSites
from torch.nn import functional as F

from skerry import Session, Shards, narrow, relay, split, train
from skerry.experiments.cli.federated import _site
from skerry.experiments.recipes import find_recipe
from skerry.federated import AtSite, Site
from skerry.federated.messages import written
from skerry.training import log_priors

pytestmark = pytest.mark.usefixtures("no_costs")
NUM, CLASSES = 3, 4
LISTED = {
    "query.hello": {"numbers": {"site", "differs"}},
    "train.subnet": {"numbers": {"token", "loss", "flop", "local_s", "header"}, "tensors": {"packed"}},
    "query.bye": {},
}


def samples():
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(CLASSES).repeat(60)  # as many of each class
    return torch.randn(240, 9, generator=rng) + y[:, None], y


def parts():
    return split(samples()[1], NUM, "by_label", seed=0)


def site(number, algorithm, x, y, *, loss_fn=F.cross_entropy):
    """A site that has its own samples only, and their label priors."""
    own = parts()[number]
    session = Session(**arguments(algorithm, loss_fn=loss_fn, runtime=AtSite()))
    data = Shards(x[own], y[own], [torch.arange(len(own))], batch_size=16, seed=0)
    priors = log_priors(y[own], [torch.arange(len(own))], CLASSES)[0]
    return Site(session, data, number=number, logit_adjustment=priors)


def trained(algorithm, y_of=lambda y: y):
    """Train with label skew and priors; return the result and all replies with the kinds of their messages."""
    x, y = samples()
    y = y_of(y)
    made, replies = MadeSites(), []

    def heard(message, reply):
        replies.append((message.metadata.message_type, reply.content))
        return reply

    for number in range(NUM):
        made.join(partial(site, number, algorithm, x, y), heard)
    return federated(algorithm, made), replies


def names(content):
    return {kind: set(record) for kind, record in content.items()}


@pytest.mark.parametrize("make", [relay, narrow])
def test_only_what_is_listed_leaves_a_site_that_has_label_priors(make):
    result, replies = trained(make(NUM, local_steps=STEPS))
    assert [names(content) for kind, content in replies] == [LISTED[kind] for kind, _ in replies]
    assert sum(kind == "train.subnet" for kind, _ in replies) == NUM * ROUNDS
    for kind, content in replies:
        if kind == "train.subnet":  # as many bytes as the tensors of the subnet that the header names have
            header = json.loads(content["numbers"]["header"])
            sizes = [torch.empty(shape, dtype=getattr(torch, kind)).nbytes for _, kind, shape in header]
            assert len(content["tensors"]["packed"].data) == sum(sizes)
    assert all(record.diagnosis.label_skew is None for record in result.history)


def test_other_labels_change_nothing_but_loss_weights_and_seconds():
    """The same number of samples at each site, and other classes: all that is said about a subnet is the same."""
    algorithm = relay(NUM, local_steps=STEPS)
    _, replies = trained(algorithm)
    _, others = trained(algorithm, lambda y: (y + 1) % CLASSES)

    def said(content):
        numbers = dict(content.get("numbers", {}))
        return {k: v for k, v in numbers.items() if k not in ("token", "loss", "local_s")}

    assert [(kind, said(c)) for kind, c in replies] == [(kind, said(c)) for kind, c in others]
    losses = [[c["numbers"]["loss"] for kind, c in each if kind == "train.subnet"] for each in (replies, others)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("make", [relay, narrow])
def test_priors_at_sites_are_those_of_train(make):
    algorithm, (x, y) = make(NUM, local_steps=STEPS), samples()
    ours, _ = trained(algorithm)
    data, rows = _Own(x, y), log_priors(y, parts(), CLASSES)
    meant = train(loss_fn=F.cross_entropy, data=data, verify=False, logit_adjustment=rows, **arguments(algorithm))
    assert_same(ours, meant)
    without = train(loss_fn=F.cross_entropy, data=data, verify=False, **arguments(algorithm))
    assert without.history[0].train_loss != meant.history[0].train_loss


class _Own:
    """The data of all sites, each in the order in which the site itself has it."""

    def __init__(self, x, y):
        self.num_workers = NUM
        self._sites = [Shards(x[p], y[p], [torch.arange(len(p))], batch_size=16, seed=0) for p in parts()]

    def batches(self, worker, first_step, num_steps):
        return self._sites[worker].batches(0, first_step, num_steps)

    def sample(self, worker, num):
        return self._sites[worker].sample(0, num)


def test_settings_that_differ_are_named_and_their_values_stay():
    """A loss may hold class weights, which are label counts under another name."""
    x, y = samples()
    weighted = partial(F.cross_entropy, label_smoothing=0.0625)
    own = site(0, relay(NUM, local_steps=STEPS), x, y, loss_fn=weighted)
    theirs = written({"settings": json.dumps({**own._settings, "loss_fn.label_smoothing": "0.5"})})
    with pytest.warns(UserWarning, match="label_smoothing is '0.0625' at the site, and '0.5' at the server"):
        told = own.hello(theirs)["numbers"]["differs"]
    assert told == "loss_fn.label_smoothing"


def test_a_site_of_the_command_takes_the_priors_of_its_own_data():
    config = find_recipe("digits-mlp").config.change({"split": "by_label", "prior_adjusted": True})
    x, y = torch.zeros(48, 64), torch.tensor([0, 0, 0, 1, 1, 9]).repeat(8)
    own = _site(config, None, (x, y), 2, {})
    rows = own._local._rows
    assert torch.equal(rows, log_priors(y, [torch.arange(48)], 10).expand(4, -1))
