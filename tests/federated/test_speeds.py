"""Sizes by the speeds of sites: speeds are made up, so that nothing here depends on how fast a machine is."""

import math
from dataclasses import replace
from typing import Any

import pytest
from federation import STEPS, assert_same, federated, joined, serially, site
from flwr.app import Message
from made_sites import MadeSites

from skerry import Clients, ist, narrow, relay
from skerry.algorithms import heterofl
from skerry.federated import Site, TooFewSites, measured_capacities
from skerry.federated.messages import Refused, written
from skerry.partitions.capacities import with_capacities

THREE = ist(3, local_steps=STEPS)
WORK = (1.0, 4.0, 16.0)
"""What each site does in a second, in units to the power of 2."""

pytestmark = pytest.mark.usefixtures("no_costs")


@pytest.fixture
def made_up(monkeypatch) -> list[tuple[float, ...]]:
    """Sites whose steps take the square of their capacity; the capacities that site 0 was asked for."""
    asked, real = list[tuple[float, ...]](), Site.steps_per_s

    def steps_per_s(own: Site, capacities: Any) -> float:
        assert 0 < real(own, capacities) < math.inf
        asked.extend([tuple(capacities)] * (own.number == 0))
        return WORK[own.number] / capacities[own.number] ** 2

    monkeypatch.setattr(Site, "steps_per_s", steps_per_s)
    return asked


def test_subnets_are_as_large_as_speeds_allow_and_training_is_the_serial_one(made_up):
    made = joined(THREE)
    found = measured_capacities(made.grid, THREE)
    assert found == pytest.approx((3 / 7, 6 / 7, 12 / 7), rel=0.01)  # all steps take the same time then
    assert made_up == [(1.0, 1.0, 1.0), found]
    sized = ist(3, local_steps=STEPS, capacities=found)
    assert_same(federated(sized, joined(sized)), serially(sized))


def test_measuring_leaves_no_trace_in_the_training(made_up):
    made = joined(THREE)
    measured_capacities(made.grid, THREE)
    assert_same(federated(THREE, made), serially(THREE))


def test_of_fractions_the_largest_stays(made_up):
    nested = heterofl(3, local_steps=STEPS, fractions=(0.8, 0.8, 0.8))
    found = measured_capacities(joined(nested).grid, nested)
    assert with_capacities(nested.partition, found).fractions == pytest.approx((0.2, 0.4, 0.8), rel=0.01)


@pytest.mark.parametrize("algorithm", [relay(3, local_steps=STEPS), narrow(3, local_steps=STEPS)])
def test_methods_whose_subnets_are_alike_are_refused(algorithm):
    with pytest.raises(ValueError, match="subnets cannot have the sizes"):
        measured_capacities(MadeSites().grid, algorithm)


def test_clients_are_refused():
    with pytest.raises(ValueError, match="leave out the clients"):
        measured_capacities(MadeSites().grid, replace(THREE, clients=Clients.spread(5)))


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan, math.inf, 3, "fast"])
def test_a_speed_that_cannot_be_takes_no_part(made_up, clock, speed):
    def change(message: Message, reply: Message) -> Message:
        reply.content["numbers"]["steps_per_s"] = speed
        return Message(reply.content, reply_to=message)

    made = joined(THREE, {1: change})
    with (
        pytest.warns(UserWarning, match="takes no part: steps_per_s"),
        pytest.raises(TooFewSites, match="2 of 3 sites"),
    ):
        measured_capacities(made.grid, THREE, patience_s=5.0, poll_s=1.0)


@pytest.mark.parametrize(
    "sent", ["[1.0, 1.0]", "[1.0, 1.0, 0.0]", "[1.0, 1.0, NaN]", "[1.0, 1.0, true]", "{", "3", "[[1.0]]"]
)
def test_a_site_measures_only_for_its_training(sent):
    with pytest.raises(Refused, match="capacities"):
        site(THREE, 1).hello(written({"settings": "{}", "capacities": sent}))
