"""A server and its sites against the serial runtime, on the same data: to the bit, for every method."""

from dataclasses import replace

import pytest
from federation import STEPS, assert_same, federated, joined, serially

from skerry import Checkpoints, Clients, ensemble, ist, narrow, relay
from skerry.algorithms import asyncdrop, fedbuff, federated_dropout, fedrolex, heterofl, local_sgd
from skerry.callbacks import Callback

pytestmark = pytest.mark.usefixtures("no_costs")
FIVE = Clients.spread(5, 3.0)
ALGORITHMS = {
    "ist": ist(3, local_steps=STEPS),
    "ist-core": ist(3, local_steps=STEPS, core=0.3, reshuffle=0.5),
    "relay": relay(3, local_steps=STEPS),
    "relay-nets": relay(2, local_steps=STEPS, nets=3),
    "ensemble": ensemble(3, local_steps=STEPS, optimizer_state="reset"),
    "narrow": narrow(3, local_steps=STEPS),
    "narrow-two-of-five": replace(narrow(2, local_steps=STEPS, proximal=0.3), clients=FIVE),
    "narrow-by-samples": narrow(3, local_steps=STEPS, proximal=0.3, by_samples=True),
    "local_sgd": local_sgd(2, local_steps=STEPS),
    "heterofl": heterofl(3, local_steps=STEPS, fractions=(0.8, 0.4, 0.2)),
    "fedrolex": fedrolex(3, local_steps=STEPS, step=2, fractions=(0.3, 0.3, 0.7)),
    "federated_dropout": federated_dropout(3, local_steps=STEPS),
    "asyncdrop": asyncdrop(3, local_steps=STEPS, clients=FIVE),
    "asyncdrop-moved": asyncdrop(3, local_steps=STEPS, clients=FIVE, heterogeneous=True),
    "fedbuff": fedbuff(2, local_steps=STEPS, clients=FIVE, buffer=2),
}


FAST = ("ist", "narrow-by-samples", "relay", "narrow-two-of-five", "asyncdrop-moved")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in ALGORITHMS])
def test_sites_train_to_the_bits_of_the_serial_runtime(name):
    algorithm = ALGORITHMS[name]
    ours = federated(algorithm, joined(algorithm))
    assert_same(ours, serially(algorithm))
    assert ours.state.totals["bytes_sent"] > 0


@pytest.mark.parametrize("name", ["narrow-two-of-five", pytest.param("asyncdrop", marks=pytest.mark.slow)])
def test_a_server_that_was_killed_goes_on_exactly(name, tmp_path):
    algorithm = ALGORITHMS[name]

    class Killed(BaseException):
        pass

    def kill(session, record) -> None:
        if record.round == 1:
            raise Killed

    with pytest.raises(Killed):
        federated(
            algorithm,
            joined(algorithm),
            checkpoints=Checkpoints(tmp_path, every_s=0),
            callbacks=[Callback(on_round=kill)],
        )
    after = federated(algorithm, joined(algorithm), checkpoints=Checkpoints(tmp_path, every_s=0, resume=True))
    undisturbed = serially(algorithm)
    assert after.state.round == 3
    assert [r.round for r in after.history] == [1, 2]
    assert_same(after, undisturbed)
