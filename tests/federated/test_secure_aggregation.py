"""Secure aggregation: refused with the reasons. One of them is Flower 1.41's, and is shown by undoing it.

Once ``test_masks_of_flower_can_be_tried_out`` fails, Flower's masks are better: look at the refusal again.
"""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from made_sites import MadeSites

from skerry.federated import Federated

mod = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")  # its package hides it behind a function
CLIP, TARGET, RANGE = 8.0, 2**22, 2**32  # Flower's defaults


def first_words(seeds: np.ndarray, num: int) -> np.ndarray:
    """Return the first words of the Mersenne Twister with each of ``seeds``, (num, len(seeds)) uint32."""
    state = [seeds.astype(np.uint32)]
    for k in range(1, 397 + num):
        before = state[-1]
        state.append(np.uint32(1812433253) * (before ^ (before >> np.uint32(30))) + np.uint32(k))
    words = []
    for k in range(num):
        both = (state[k] & np.uint32(0x80000000)) | (state[k + 1] & np.uint32(0x7FFFFFFF))
        word = state[k + 397] ^ (both >> np.uint32(1)) ^ (both & np.uint32(1)) * np.uint32(0x9908B0DF)
        word = word ^ (word >> np.uint32(11))
        word = word ^ ((word << np.uint32(7)) & np.uint32(0x9D2C5680))
        word = word ^ ((word << np.uint32(15)) & np.uint32(0xEFC60000))
        words.append(word ^ (word >> np.uint32(18)))
    return np.stack(words)


def folded(key: bytes) -> int:
    return int(np.bitwise_xor.reduce(np.frombuffer(key, "<u4")))


def shared(one: Any, other: Any) -> bytes:
    return generate_shared_key(bytes_to_private_key(one.sk1), bytes_to_public_key(other.pk1))


def test_masks_of_flower_can_be_tried_out():
    """Of three sites one tells the server its keys. They should learn the sum of the other two, and learn one by one.

    Only 2**12 of the 2**32 seeds are tried here, the right one among them: the others take longer, that is all.
    """
    rng = np.random.default_rng(0)
    updates = [rng.normal(size=20) for _ in range(3)]
    sites = [mod.SecAggPlusState(nid=k, current_stage=Stage.SETUP) for k in range(3)]
    given = {Key.SAMPLE_NUMBER: 3, Key.SHARE_NUMBER: 3, Key.THRESHOLD: 2, Key.CLIPPING_RANGE: CLIP}
    given |= {Key.TARGET_RANGE: TARGET, Key.MOD_RANGE: RANGE, Key.MAX_WEIGHT: 1.0}
    public = {str(site.nid): list(mod._setup(site, dict(given)).values()) for site in sites}
    sent = [mod._share_keys(site, dict(public)) for site in sites]
    masked = []
    for site in sites:
        told = {
            (k, to): c
            for k, s in enumerate(sent)
            for to, c in zip(s[Key.DESTINATION_LIST], s[Key.CIPHERTEXT_LIST], strict=True)
        }
        mine = {k: cipher for (k, to), cipher in told.items() if to == site.nid}
        configs = {Key.CIPHERTEXT_LIST: list(mine.values()), Key.SOURCE_LIST: list(mine)}
        found = mod._collect_masked_vectors(site, configs, 1, ndarrays_to_parameters([updates[site.nid]]))
        masked.append([bytes_to_ndarray(each) for each in found[Key.MASKED_PARAMETERS]])
    shares = [mod._unmask(site, {Key.ACTIVE_NODE_ID_LIST: [0, 1, 2], Key.DEAD_NODE_ID_LIST: []}) for site in sites]

    # The server has masked vectors and the seed of each private mask; site 2 tells its keys with the others.
    shapes = [each.shape for each in masked[0]]
    private = combine_shares([each[Key.SHARE_LIST][0] for each in shares])
    known = [pseudo_rand_gen(private, RANGE, shapes), pseudo_rand_gen(shared(sites[2], sites[0]), RANGE, shapes)]
    left = np.concatenate([a - b + c for a, b, c in zip(masked[0], *known, strict=True)]) % RANGE  # site 0 < site 2
    around = folded(shared(sites[0], sites[1])) & ~0xFFF
    seeds = np.arange(around, around + 0x1000, dtype=np.uint64).astype(np.uint32)
    plain = (left[:12, None] + first_words(seeds, 12).astype(np.int64)) % RANGE  # site 0 < site 1: it was subtracted
    fits = (plain <= TARGET).all(0).nonzero()[0]
    assert seeds[fits].tolist() == [folded(shared(sites[0], sites[1]))]
    (meant,) = quantize([updates[0]], CLIP, TARGET)
    assert np.abs(plain[1:, fits[0]] - meant[:11]).max() <= 1  # rounded at random


@pytest.mark.parametrize(
    "told", ["seeds of 32 bits", "one by one .asyncdrop, fedbuff", "fewer than 3 sites hold a unit"]
)
def test_secure_aggregation_is_refused_with_the_reasons_where_it_is_asked_for(told):
    with pytest.raises(ValueError, match=f"secure_aggregation=True: .*{told}"):
        Federated(MadeSites().grid, secure_aggregation=True)
