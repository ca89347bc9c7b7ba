"""Train replicas of a whole MLP by one of IST's rivals and write a curve; started by torchrun, one process per worker.

    SKERRY_DATA=... torchrun --standalone --nproc-per-node 4 bench/distributed/train_rival.py --task speech \\
        --method local_sgd --local-steps 100 --lr 0.02 --hidden 2048 --layers 3 --steps 2000 --out runs/local_sgd.jsonl

All methods start from the same weights, see the same batches (those of Skerry's workers) and follow the same cosine
schedule. It ends at ``--steps``, even if ``--max-seconds`` stops training earlier.

- ``ddp``: torch's DistributedDataParallel. Gradients are averaged in every step. SGD with momentum.
- ``local_sgd``: torch's own post-local SGD (PostLocalSGDOptimizer and its hook for DDP) without a warm-up. No gradient
  is sent. Parameters are averaged every ``--local-steps`` steps; momenta stay on their worker, as in torch.
- ``diloco``: Douillard et al.: DiLoCo, 2023, arXiv 2311.08105, algorithm 1. The inner optimizer is AdamW, whose state
  stays on its worker; the outer one is torch's SGD with Nesterov momentum. torchft's DiLoCo (0.2.0) is not used, since
  its Manager needs a lighthouse server. Differs from the paper: torch's default weight decay, .01 instead of .1.

Batch norm: running statistics stay on their worker. They are averaged with the parameters (``local_sgd``, ``diloco``),
or for an evaluation (``ddp``, where training does not use them; this is neither timed nor counted).

A line of the curve has ``step``; ``train_s``, the first process's wall time without evaluations; ``bytes_model``, what
one process has sent so far for gradients, parameters and statistics, 2(n-1)/n times their size for each all-reduce, as
in a ring; ``accuracy`` and ``loss`` on the test set; ``train_loss``, the mean over workers and the steps since the last
line; ``stopped``, whether training ends early here. The last line also has ``replicas_agree``: whether all processes
ended with the same bits. Training stops at an evaluation when a loss is not finite; the curve then has null.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from tasks import TASKS, Task, task
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from skerry import cosine
from skerry.training import evaluate

TIMEOUT = timedelta(minutes=30)  # a wide model takes minutes on a slow link


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train replicas.

    Attributes:
        module: what a training step calls: the replica, or its wrapper.
        optimizer: has ``param_groups``, ``zero_grad`` and ``step``.
        period: the number of steps between synchronizations, after which all replicas are equal.
        sync: called after every ``period`` steps.
        before_evaluation: called before an evaluation, while the clock is stopped.
        bytes_per_sync: what one process sends in a period.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    period: int
    sync: Callable[[], None]
    before_evaluation: Callable[[], None]
    bytes_per_sync: float


def ddp(model: nn.Module, options: argparse.Namespace) -> Method:
    """Gradients averaged in every step."""
    return Method(
        module=wrap(model),
        optimizer=torch.optim.SGD(model.parameters(), lr=options.lr, momentum=options.momentum),
        period=1,
        sync=_nothing,
        before_evaluation=lambda: average_statistics_(model),
        bytes_per_sync=ring_bytes(model.parameters()),
    )


def local_sgd(model: nn.Module, options: argparse.Namespace) -> Method:
    """Parameters averaged every ``local_steps`` steps, by torch."""
    module = wrap(model)
    # The hook sends nothing from the first step on. By default it would all-reduce gradients within each host.
    state = PostLocalSGDState(None, None, start_localSGD_iter=0, post_local_gradient_allreduce=False)
    module.register_comm_hook(state, post_localSGD_hook)
    # The averager averages at step warmup_steps and then once per period: this makes it the last step of each period.
    averager = PeriodicModelAverager(options.local_steps, warmup_steps=options.local_steps - 1)
    inner = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=options.momentum)
    return Method(
        module=module,
        optimizer=PostLocalSGDOptimizer(inner, averager),
        period=options.local_steps,
        sync=lambda: average_statistics_(model),
        before_evaluation=_nothing,
        bytes_per_sync=ring_bytes([*model.parameters(), *statistics(model)]),
    )


def diloco(model: nn.Module, options: argparse.Namespace) -> Method:
    """An outer step on the mean of the workers' moves, every ``local_steps`` steps.

    With theta the weights after the last outer step, and theta_i those of worker i of k after its local steps:

        Delta = (1/k) sum_i (theta - theta_i),   theta <- SGD(theta, Delta) with Nesterov momentum,   theta_i <- theta
    """
    params, momentum = list(model.parameters()), options.outer_momentum
    theta = nn.Parameter(parameters_to_vector(params).detach().clone())
    outer = torch.optim.SGD([theta], lr=options.outer_lr, momentum=momentum, nesterov=momentum > 0)

    def sync() -> None:
        theta.grad = mean_(theta.detach() - parameters_to_vector(params).detach())
        outer.step()
        vector_to_parameters(theta.detach().clone(), params)  # parameters become views of the vector they are given
        average_statistics_(model)

    return Method(
        module=model,
        optimizer=torch.optim.AdamW(params, lr=options.lr),
        period=options.local_steps,
        sync=sync,
        before_evaluation=_nothing,
        bytes_per_sync=ring_bytes([*params, *statistics(model)]),
    )


METHODS = {"ddp": ddp, "local_sgd": local_sgd, "diloco": diloco}


def wrap(model: nn.Module) -> DistributedDataParallel:
    """Wrap the model in torch's DDP so that it sends only gradients; replicas already start with the same weights."""
    return DistributedDataParallel(model, forward_sync_buffers=False, init_sync=False, gradient_as_bucket_view=True)


def sum_(tensor: Tensor) -> Tensor:
    """Add up over all processes, in place."""
    dist.all_reduce(tensor)
    return tensor


def mean_(tensor: Tensor) -> Tensor:
    """Average over all processes, in place."""
    return sum_(tensor.div_(dist.get_world_size()))


def statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances; batch counts are equal on all workers."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def average_statistics_(model: nn.Module) -> None:
    """Average batch norm's running statistics over all processes."""
    buffers = statistics(model)
    flat = mean_(torch.cat([buffer.flatten() for buffer in buffers]))
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def ring_bytes(tensors: Iterable[Tensor]) -> float:
    """Return what each of n processes sends to all-reduce ``tensors`` in a ring: 2(n-1)/n times their bytes."""
    n = dist.get_world_size()
    return 2 * (n - 1) / n * sum(tensor.nbytes for tensor in tensors)


def replicas_agree(model: nn.Module) -> bool:
    """Return whether parameters and buffers have the same bits in all processes."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    mine = torch.tensor([int.from_bytes(digest.digest(), "little") >> 1])
    everybody = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, mine)
    return all(bool(one == mine) for one in everybody)


def next_stop(step: int, step_s: float, train_s: float, period: int, options: argparse.Namespace) -> int:
    """Return the step of the next evaluation, a multiple of ``period`` or the last step; ``step`` means: stop here.

    It is planned from the recent pace, so that processes need not communicate between evaluations.

    Args:
        step: steps done, at least 1.
        step_s: recent seconds per step.
        train_s: seconds of training so far.
        period: steps between synchronizations.
        options: of the command line.
    """
    left_s = options.max_seconds - train_s
    if step >= options.steps or left_s < step_s * period / 2:
        return step
    steps = min(options.eval_every or options.eval_every_s / step_s, left_s / step_s)
    return min(step + max(1, round(steps / period)) * period, options.steps)


def train(model: nn.Module, method: Method, given: Task, options: argparse.Namespace) -> None:
    """Train and write the curve."""
    rank = dist.get_rank()
    rates = [group["lr"] for group in method.optimizer.param_groups]
    test = tuple(part[rank :: dist.get_world_size()] for part in given.test)
    step, train_s = 0, 0.0
    stop = min(max(1, (options.eval_every or 1) // method.period) * method.period, options.steps)
    with open(options.out if rank == 0 else "/dev/null", "w") as curve:
        while True:
            started, first, total_loss = time.perf_counter(), step, 0.0
            for step, (x, y) in enumerate(given.shards.batches(rank, first, stop - first), start=first + 1):
                for group, rate in zip(method.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * cosine((step - 1) / options.steps)
                method.optimizer.zero_grad()
                loss = given.loss_fn(method.module(x), y)
                loss.backward()
                method.optimizer.step()
                total_loss += loss.item()
                if step % method.period == 0:
                    method.sync()
            spent_s = time.perf_counter() - started
            train_s += spent_s
            dist.barrier()  # the clock is stopped from here to the next barrier
            method.before_evaluation()
            score = evaluate(model, given.loss_fn, test, total=sum_)
            train_loss = mean_(torch.tensor(total_loss / (step - first), dtype=torch.float64)).item()
            finite = math.isfinite(train_loss + score.loss)
            stop = next_stop(step, spent_s / (step - first), train_s, method.period, options) if finite else step
            agreed = torch.tensor(stop)
            dist.broadcast(agreed, 0)  # clocks differ: the first process decides
            stop = int(agreed)
            line = {
                "step": step,
                "train_s": round(train_s, 4),
                "bytes_model": round(step // method.period * method.bytes_per_sync),
                "accuracy": score.accuracy,
                "loss": score.loss if math.isfinite(score.loss) else None,
                "train_loss": train_loss if math.isfinite(train_loss) else None,
                "stopped": stop == step < options.steps,
            }
            if stop == step:
                line["replicas_agree"] = replicas_agree(model)
            print(json.dumps(line), file=curve, flush=True)
            if stop == step:
                return
            dist.barrier()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--lr", type=float, required=True, help="diloco: of the inner optimizer")
    parser.add_argument("--steps", type=int, required=True, help="per worker; also the length of the schedule")
    parser.add_argument(
        "--out", type=Path, required=True, help="the curve; settings go to OUT with suffix .config.json"
    )
    parser.add_argument("--local-steps", type=int, default=100, help="between synchronizations; not used by ddp")
    parser.add_argument("--momentum", type=float, default=0.9, help="of SGD (ddp, local_sgd)")
    parser.add_argument("--outer-lr", type=float, default=0.7, help="of diloco")
    parser.add_argument("--outer-momentum", type=float, default=0.9, help="of diloco")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128, help="per worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="of training, without evaluations")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--eval-every-s", type=float, default=5.0, help="about this many seconds between evaluations")
    when.add_argument("--eval-every", type=int, help="steps between evaluations, in whole periods")
    options = parser.parse_args(arguments)
    least = {"steps": 1, "local_steps": 1, "hidden": 1, "layers": 1, "batch_size": 1, "seed": 0, "eval_every": 1}
    for name, minimum in least.items():
        if (value := getattr(options, name)) is not None and value < minimum:
            parser.error(f"--{name.replace('_', '-')}: got {value}, expected at least {minimum}")
    if options.method != "ddp" and options.steps % options.local_steps:
        parser.error(f"--steps: got {options.steps}, expected a multiple of --local-steps ({options.local_steps})")
    return options


def run(options: argparse.Namespace) -> None:
    """Train as one process of an existing group."""
    torch.set_num_threads(1)
    workers = dist.get_world_size()
    if dist.get_rank() == 0:
        settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
        settings |= {"workers": workers, "torch": torch.__version__, "skerry": version("skerry")}
        if math.isinf(options.max_seconds):
            settings["max_seconds"] = None  # JSON has no infinity
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".config.json").write_text(json.dumps(settings, indent=2) + "\n")
    given = task(options.task, workers, options.hidden, options.layers, options.batch_size, options.seed)
    model = given.model(options.seed)
    train(model, METHODS[options.method](model, options), given, options)


def main() -> None:
    """Join torchrun's process group and train."""
    options = parse()
    dist.init_process_group("gloo", timeout=TIMEOUT)
    run(options)
    dist.destroy_process_group()


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
