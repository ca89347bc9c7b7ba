"""Label priors in local steps: against the equation, a loop that adds them by hand, and training without."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from together import together
from torch.nn import functional as F
from zoo import METHODS, Shards, blobs, mlp

from skerry import Session, cosine, ist, launch, train
from skerry.algorithms import ddp, local_sgd
from skerry.runtimes import Serial
from skerry.training import Test, log_priors
from skerry.training.train import calibration_inputs


def unlike(workers):
    """Blobs sorted by class, dealt in order, and the log priors of this deal."""
    x, y = next(iter(blobs(1, batch=240).batches(0, 0, 1)))
    parts = list(y.argsort().tensor_split(workers))
    return Shards(x, y, parts, batch_size=16, seed=0), log_priors(y, parts, 4)


def test_the_equation():
    labels = torch.tensor([2, 0, 0, 1, 0, 2], dtype=torch.uint8)
    rows = log_priors(labels, [torch.tensor([1, 2, 4, 0]), torch.tensor([3, 5])], num_classes=4)
    meant = [[4 / 8, 1 / 8, 2 / 8, 1 / 8], [1 / 6, 2 / 6, 2 / 6, 1 / 6]]
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, torch.tensor(meant).log())


@pytest.mark.parametrize(
    ("labels", "parts", "names"),
    [
        (torch.rand(4), [[0, 1]], r"labels\b.*\btorch\.float32\b.*\(4,\).*\(num_samples,\)"),
        (torch.ones(4, 2, dtype=torch.int64), [[0, 1]], r"labels\b.*\btorch\.int64\b.*\(4, 2\).*\(num_samples,\)"),
        (torch.tensor([0, 3]), [[0, 1]], r"labels\b.*\b3\b.*\b2\b.*\bnum_classes=4\b"),
        (torch.tensor([0, -1]), [[0, 1]], r"labels\b.*-1\b.*\b0\b.*\b2\b"),
        (torch.tensor([0, 1]), [], r"\bparts\b(?!\[)"),
        (torch.tensor([0, 1]), [[0], [2]], r"parts\[1\].*\b2\b.*\b1\b"),
    ],
)
def test_what_has_no_priors_is_refused(labels, parts, names):
    with pytest.raises(ValueError, match=names) as error:
        log_priors(labels, [torch.tensor(part) for part in parts], num_classes=3)
    assert "\n" not in str(error.value)


def by_train(rows, algorithm, *, runtime=None, optimizer=METHODS["ist"].optimizer, rounds=3, norm=True):
    torch.manual_seed(1)
    (model, plan, _), (data, _) = mlp(norm=norm), unlike(algorithm.partition.num_workers)
    test = next(iter(blobs(1, seed=5).batches(0, 0, 1)))
    result = train(
        model, F.cross_entropy, data, plan=plan, algorithm=algorithm, optimizer=optimizer, num_rounds=rounds,
        schedule=cosine, logit_adjustment=rows, runtime=runtime, test=Test(*test, every=1),
    )  # fmt: skip
    return result, [(record.train_loss, record.diagnosis) for record in result.history]


@pytest.mark.parametrize("method", ["ist-uneven-travel", "diloco"])
def test_train_adds_a_workers_row_in_its_local_steps_and_nowhere_else(method):
    algorithm, optimizer = METHODS[method].algorithm, METHODS[method].optimizer
    torch.manual_seed(1)
    (model, plan, _), (data, rows), seen = mlp(), unlike(3), []
    test = next(iter(blobs(1, seed=5).batches(0, 0, 1)))
    with Session(
        model, plan=plan, algorithm=algorithm, optimizer=optimizer, num_rounds=3, schedule=cosine,
        loss_fn=F.cross_entropy, test=test, has_priors=True,
    ) as session:  # fmt: skip
        for round in session.rounds():
            for worker in round.workers:
                for x, y in data.batches(worker.number, worker.first_step, worker.num_steps):
                    worker.step(F.cross_entropy(worker.subnet(x) + rows[worker.number], y), y)
            full = session.full(*calibration_inputs(data, range(3)))
            score = session.score(full)
            seen.append((round.train_loss, round.diagnosis))  # with the losses of subnets and full model on the probe
    result, of_train = by_train(rows, algorithm, optimizer=optimizer)
    assert of_train == seen
    assert result.score == score
    for (name, ours), (_, meant) in zip(result.full.tensors(), full.tensors(), strict=True):
        assert torch.equal(ours, meant), name
    assert by_train(None, algorithm, optimizer=optimizer)[1] != seen


def test_a_process_needs_the_row_of_its_own_worker_only():
    algorithm, (_, rows) = METHODS["ist"].algorithm, unlike(3)

    def work(member):
        own = torch.full_like(rows, math.nan)
        own[member.rank] = rows[member.rank]
        return {name: tensor.clone() for name, tensor in by_train(own, algorithm, runtime=member)[0].full.tensors()}

    streamed = together(3, work)[0]
    for name, tensor in by_train(rows, algorithm)[0].full.tensors():
        torch.testing.assert_close(streamed[name], tensor)


def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.1)


def in_processes(runtime, folder):
    torch.set_num_threads(1)
    for name, algorithm in {"ist": ist(2, local_steps=4), "ddp": ddp(2, local_steps=4)}.items():
        result, _ = by_train(unlike(2)[1], algorithm, runtime=runtime, optimizer=sgd, norm=False)
        tensors = {name: tensor.clone() for name, tensor in result.full.tensors()}
        if runtime.rank == 0:
            save_file(tensors, folder / name)


def test_processes_give_the_serial_result_with_ddp_too(tmp_path):
    launch(in_processes, 2, tmp_path)
    # Where each step is its own round, averaging weights after it is averaging gradients in it, but for the schedule.
    for name, algorithm in {"ist": ist(2, local_steps=4), "ddp": local_sgd(2, local_steps=1)}.items():
        rounds = 3 if name == "ist" else 12
        result, _ = by_train(unlike(2)[1], algorithm, runtime=Serial(), optimizer=sgd, rounds=rounds, norm=False)
        ours = load_file(tmp_path / name)
        for tensor_name, tensor in result.full.tensors():
            torch.testing.assert_close(ours[tensor_name], tensor)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((2, 4), r"logit_adjustment\b.*\(2, 4\).*\(3, "),
        ((4,), r"logit_adjustment\b.*\(4,\).*\(3, "),
        ((3, 5), r"logit_adjustment\b.*\b5\b.*\(16, 4\)"),
    ],
)
def test_other_rows_than_workers_or_columns_than_classes_are_refused(shape, names):
    with pytest.raises(ValueError, match=names) as error:
        by_train(torch.zeros(shape), METHODS["ist"].algorithm)
    assert "\n" not in str(error.value)
