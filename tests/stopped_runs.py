"""Runs of a small net that are stopped and resumed, serially or in threads."""

import torch
from mixed_tensors import copied
from together import together
from torch.nn import functional as F
from zoo import METHODS, MODELS

from skerry import Checkpoints, train
from skerry.callbacks import Callback
from skerry.checkpoint import layout
from skerry.runtimes import Serial


class Stopped(Exception):
    """What ends a run at once in these tests."""


def go(runtime, folder, *, method="ist-uneven-travel", model_name="mlp", stop=None, resume=False, rounds=5, every_s=0):
    """Train; with ``stop`` end after that round's work, before its checkpoint."""
    algorithm, (build, data) = METHODS[method].algorithm, MODELS[model_name]
    torch.manual_seed(1)
    model, plan, _ = build()

    def on_round(session, record):
        if record.round == stop:
            raise Stopped

    return train(
        model, F.cross_entropy, data(algorithm.partition.num_workers), plan=plan, algorithm=algorithm,
        optimizer=METHODS[method].optimizer, num_rounds=rounds, runtime=runtime,
        callbacks=[Callback(on_round=on_round)],
        checkpoints=Checkpoints(folder=folder, run="mine", every_s=every_s, resume=resume),
    )  # fmt: skip


def ends(folder, how, **more):
    """What each process has at the end, its calibrated model included."""
    several = how == "processes"

    def work(runtime):
        result = go(runtime, folder, **more)
        tensors = copied(result.store.shards()) | {f"calibrated {n}": t.clone() for n, t in result.full.tensors()}
        return tensors | {"trained": result.state.trained, "due": torch.tensor(result.state.totals["bytes_due"])}

    return together(3, work) if several else [work(Serial())]


def rounds(folder):
    """The rounds of complete sets, in the order in which they were saved."""
    return [layout.round_of(path.name) for path in reversed(layout.complete_sets(folder))]


def latest(folder):
    """The folder of the latest complete set."""
    return layout.complete_sets(folder)[0]
