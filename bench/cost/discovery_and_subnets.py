"""What finding a plan, cutting subnets and training them cost, as ratios to plain work measured beside them.

    python bench/cost/discovery_and_subnets.py                    # all three tables, about three minutes
    python bench/cost/discovery_and_subnets.py discover cut step  # or only some of them

What is compared is measured in turn within one run, on one thread; medians are compared. Three tables:

- ``discover`` against one plain forward (evaluation mode, no gradients), and its peak memory in addition to the model,
  in a fresh process for each model. More threads speed up the forward but hardly ``discover``.
- ``extract`` and ``write_back`` of one of 4 workers' subnets against ``copy_`` of all the subnet's parameters and
  buffers into existing tensors. ``clone`` is the same copy into new memory, which ``extract`` needs as well.
- a training step (forward, backward, SGD) of a subnet against the same step of a net of that width written by hand. A
  second net written by hand shows the noise of the ratio. The last column is what it costs to make the subnet's module
  anew, as the runtimes do each round, as a share of a round of 20 steps.
"""

import ctypes
import gc
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry.model.inputs import call, tensors_of
from skerry.model.tensors import fill_, named_tensors, skeleton

MB = 1e6
WORKERS = 4

# --- the models -------------------------------------------------------------------------------------------------------


def mlp(width: int) -> nn.Module:
    """Three dense layers."""
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip


def gpt2(**config: int) -> nn.Module:
    """GPT-2 of transformers, 124M by default."""
    from transformers import GPT2Config, GPT2LMHeadModel  # bench/device.py does without

    return GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0))


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3, 1x1, with batch norm after each."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        same = inputs == outputs and stride == 1
        self.skip = nn.Sequential() if same else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Add the block to its input."""
        return F.relu(self.body(x) + self.skip(x))


def resnet50() -> nn.Module:
    """ResNet-50 for ImageNet, 25.6M parameters."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    width = 64
    for inner, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for k in range(blocks):
            layers.append(Bottleneck(width, inner, 4 * inner, stride if k == 0 else 1))
            width = 4 * inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def vgg11() -> nn.Module:
    """VGG-11 for ImageNet, 132.9M parameters, most of them in the first dense layer."""
    layers: list[nn.Module] = []
    width = 3
    for channels, pooled in ((64, 1), (128, 1), (256, 0), (256, 1), (512, 0), (512, 1), (512, 0), (512, 1)):
        layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU(), *[nn.MaxPool2d(2)] * pooled]
        width = channels
    dense = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


class SmallResNet(nn.Module):
    """A stem and one block per stage; ``inner`` and ``streams`` are the channels inside and between the blocks."""

    def __init__(self, inner: Sequence[int], streams: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, streams[0], 3, padding=1, bias=False), nn.BatchNorm2d(streams[0]))
        self.blocks = nn.Sequential(
            *(Bottleneck(a, i, b, 2) for i, a, b in zip(inner, streams, streams[1:], strict=False))
        )
        self.head = nn.Linear(streams[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class GPTBlock(nn.Module):
    """A pre-norm transformer block with a given width per head, so that it can be built with fewer heads."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, heads * head_dim) for _ in range(3))
        self.out = nn.Linear(heads * head_dim, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Causal self-attention, then an MLP, each added to the stream."""
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def gpt(heads: int, hidden: int) -> nn.Module:
    """Two blocks of width 256 between an embedding and a head."""
    blocks = [GPTBlock(256, heads, 32, hidden) for _ in range(2)]
    return nn.Sequential(nn.Embedding(1000, 256), *blocks, nn.LayerNorm(256), nn.Linear(256, 1000))


# --- measuring --------------------------------------------------------------------------------------------------------


Wait = Callable[[], object]
"""Waits until a device has done what it was given."""


def on_cpu() -> None:
    """There is nothing to wait for."""


def in_turn(calls: Sequence[Callable[[], object]], repeats: int, wait: Wait = on_cpu) -> list[list[float]]:
    """Run each of ``calls`` once per repeat, each time starting with another one; return the seconds of each."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats):
        for k in range(len(calls)):
            which = (repeat + k) % len(calls)
            wait()
            started = time.perf_counter()
            result = calls[which]()
            wait()
            seconds[which].append(time.perf_counter() - started)
            del result  # freeing it is not timed
    return seconds


def medians(calls: Sequence[Callable[[], object]], repeats: int, wait: Wait = on_cpu) -> list[float]:
    """Return the median seconds of each of ``calls``, run in turn after a warm-up."""
    in_turn(calls, 1)
    return [statistics.median(times) for times in in_turn(calls, repeats, wait)]


def parameters_m(model: nn.Module) -> str:
    """Return the number of parameters in millions."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M"


def table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their header, the first column aligned left and the others right."""
    wide = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        print("  ".join([row[0].ljust(wide[0]), *(cell.rjust(w) for cell, w in zip(row[1:], wide[1:], strict=True))]))
    print(flush=True)


def bound(what: str, found: dict[str, float], most: float, form: str) -> None:
    """Print whether all figures are at most ``most``, and which are not."""
    over = ", ".join(f"{name} {value:{form}}" for name, value in found.items() if not value <= most)
    worst = max(found, key=lambda name: found[name])
    met = f"met (worst: {worst} {found[worst]:{form}})"
    print(f"{what} at most {most:{form}}: {'not met: ' + over if over else met}", flush=True)


# --- discover ---------------------------------------------------------------------------------------------------------

BIG: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "GPT-2": lambda: (gpt2(), torch.randint(0, 50257, (1, 64))),
    "ResNet-50": lambda: (resnet50(), torch.randn(1, 3, 224, 224)),
    "VGG-11": lambda: (vgg11(), torch.randn(1, 3, 224, 224)),
}


@torch.no_grad()
def discover_bench() -> None:
    """Measure seconds and memory of ``skerry.discover``."""
    rows = [["model", "parameters", "forward s", "discover s", "(d-1)/f", "forward +MB", "discover +MB", "of model"]]
    ratios, shares = {}, {}
    for name, build in BIG.items():
        model, inputs = build()
        model.eval()
        size = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
        calls = [lambda m=model, x=inputs: m(x), lambda m=model, x=inputs: skerry.discover(m, x)]
        forward, discover = medians(calls, 5)
        ratios[name] = (discover - 1) / forward
        forward_grows, discover_grows = memory_of(name)
        shares[name] = discover_grows / size
        rows.append([
            name, parameters_m(model), f"{forward:.3f}", f"{discover:.2f}", f"{ratios[name]:.1f}",
            f"{forward_grows / MB:.0f}", f"{discover_grows / MB:.0f}", f"{shares[name]:.0%}",
        ])  # fmt: skip
        del model, inputs, calls
        gc.collect()
    table("discover, and one forward (+MB: growth of resident memory at its peak)", rows)
    bound("(discover - 1 s) / forward", ratios, 10, ".1f")
    bound("extra memory of discover, as a share of the model's,", shares, 0.25, ".0%")


def memory_of(name: str) -> tuple[float, float]:
    """Return the growth of resident memory at the peak of a forward and of ``discover``, in a fresh process, bytes.

    There malloc returns freed memory to the system, so that growth cannot hide in memory that was already resident.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--memory", name]
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    forward, discover = map(float, printed.split())
    return forward, discover


@torch.no_grad()
def print_memory(name: str) -> None:
    """In the fresh process: print the growth of a second forward, then of ``discover``."""
    model, inputs = BIG[name]()
    model.eval()
    model(inputs)  # what is made once (imports, thread pools, scratch) is not counted
    skerry.discover(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), torch.randn(1, 2))
    print(growth(lambda: model(inputs)), growth(lambda: skerry.discover(model, inputs)))


def growth(run: Callable[[], object]) -> float:
    """Return the bytes by which resident memory peaks during ``run`` above its size before (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(which: str) -> float:
    """Return a line of /proc/self/status, in bytes."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024.0 * int(found[1])


# --- extract and write_back -------------------------------------------------------------------------------------------

CUT: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "MLP 10M": lambda: (mlp(2800), torch.randn(2, 784)),
    "GPT 10M": lambda: (gpt2(n_embd=320, n_layer=6, n_head=8, vocab_size=8192), torch.randint(0, 8192, (1, 8))),
    "MLP 100M": lambda: (mlp(9600), torch.randn(2, 784)),
    "GPT 124M": lambda: (gpt2(), torch.randint(0, 50257, (1, 8))),
}


@torch.no_grad()
def cut_bench() -> None:
    """Compare ``extract`` and ``write_back`` with a copy of the same bytes."""
    rows = [["subnet of 1/4", "parameters", "MB", "copy_ ms", "clone", "extract", "write_back"]]
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, build in CUT.items():
        model, inputs = build()
        plan = skerry.discover(model, inputs)
        first = [torch.arange(axis.start, axis.start + axis.num_units // WORKERS) for axis in plan.axes]
        dealt = skerry.partitions.Disjoint(WORKERS).assign(plan.axes, round=0).units(0)
        for kind, units in (("contiguous", torch.cat(first)), ("random", dealt)):
            size, (copy, clone, extract, write_back) = cut_times(model, plan, units, 51 if "10M" in name else 21)
            size_class = "10M" if "10M" in name else "100M"
            found.setdefault((kind, size_class), {}).update(
                {f"{name} extract": extract / copy, f"{name} write_back": write_back / copy}
            )
            rows.append([
                f"{name} {kind}", parameters_m(model), f"{size / MB:.1f}", f"{1e3 * copy:.2f}",
                *(f"{seconds / copy:.2f}x" for seconds in (clone, extract, write_back)),
            ])  # fmt: skip
    table("extract and write_back, in times of copy_ of the subnet's tensors", rows)
    for (kind, size_class), ratios in found.items():
        bound(
            f"extract and write_back of {kind} units at {size_class}", ratios, 3 if kind == "contiguous" else 12, ".2f"
        )


def cut_times(
    model: nn.Module, plan: skerry.Plan, units: Tensor, repeats: int, wait: Wait = on_cpu
) -> tuple[int, list[float]]:
    """Return the bytes of a subnet; the seconds of ``copy_`` and ``clone`` of its tensors, extract and write_back."""
    subnet = skerry.subnet.extract(model, plan, units)
    source = [t.detach() for t in [*subnet.parameters(), *subnet.buffers()]]
    target = [torch.empty_like(t).copy_(t) for t in source]
    calls: list[Callable[[], object]] = [
        lambda: [a.copy_(b) for a, b in zip(target, source, strict=True)],
        lambda: [b.clone() for b in source],
        lambda: skerry.subnet.extract(model, plan, units),
        lambda: skerry.subnet.write_back(model, plan, units, subnet),
    ]
    return sum(t.nbytes for t in source), medians(calls, repeats, wait)


# --- a step of training -----------------------------------------------------------------------------------------------

STEP: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "MLP": (lambda: mlp(2048), lambda: mlp(512), lambda: torch.randn(128, 784)),
    "ResNet": (
        lambda: SmallResNet((128, 256), (128, 256, 512)),
        lambda: SmallResNet((32, 64), (32, 64, 128)),
        lambda: torch.randn(4, 3, 32, 32),
    ),
    "GPT": (lambda: gpt(8, 1024), lambda: gpt(2, 256), lambda: torch.randint(0, 1000, (4, 64))),
}
"""The full model, the net of a quarter of its width written by hand, and its inputs."""


def step_bench() -> None:
    """Compare a step of a subnet with that of the same net written by hand."""
    rows = [["net of 1/4", "parameters", "by hand ms", "by hand again", "subnet", "module anew, of 20 steps"]]
    ratios = {}
    for name, (full, by_hand, inputs) in STEP.items():
        model, x = full(), inputs()
        plan = skerry.discover(model, x)
        hand, again, of_subnet = step_times(model, plan, by_hand, x)
        ratios[name] = of_subnet / hand
        ms, noise = f"{1e3 * hand:.2f}", f"{again / hand:.3f}x"
        units = skerry.partitions.Disjoint(WORKERS).assign(plan.axes, round=0).units(0)
        subnet = skerry.subnet.extract(model, plan, units)
        modules, values = skeleton(model), named_tensors(subnet)
        cut = partial(skerry.subnet.extract, modules, plan, units)
        (anew,) = medians([lambda cut=cut, values=values: fill_(cut(), values)], 21)
        rows.append([name, parameters_m(subnet), ms, noise, f"{ratios[name]:.3f}x", f"{anew / (20 * of_subnet):.2%}"])
    table("a training step of a subnet, in times of a net of its width written by hand", rows)
    bound("a step of a subnet against one by hand", ratios, 1.03, ".3f")


def step_times(
    model: nn.Module,
    plan: skerry.Plan,
    by_hand: Callable[[], nn.Module],
    x: Tensor,
    wait: Wait = on_cpu,
    deals: int = 10,
) -> list[float]:
    """Return the median seconds of a step of a net written by hand, of another one, and of a subnet."""
    times: list[list[float]] = [[], [], []]
    for deal in range(deals):  # new nets each time, since their place in memory matters too
        units = skerry.partitions.Disjoint(WORKERS, seed=deal).assign(plan.axes, round=0).units(0)
        subnet = skerry.subnet.extract(model, plan, units)
        nets = [by_hand().to(x.device), by_hand().to(x.device), subnet]
        for net in nets[:2]:
            net.load_state_dict(subnet.state_dict())  # fails unless the widths are the same
        calls = [step_of(net, x) for net in nets]
        in_turn(calls, 2)
        for all_times, new in zip(times, in_turn(calls, 30, wait), strict=True):
            all_times.extend(new)
    return [statistics.median(each) for each in times]


def step_of(net: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return a function that does one step of SGD on ``x``, so small that the net hardly changes."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9)
    net.train()

    def step() -> None:
        optimizer.zero_grad()
        loss = sum(t.square().mean() for t in tensors_of(call(net, x)))
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()

    return step


BENCHES = {"discover": discover_bench, "cut": cut_bench, "step": step_bench}


def main(chosen: Sequence[str]) -> None:
    """Run the benches of these names, all if none is given."""
    print("python bench/cost/discovery_and_subnets.py", *chosen)
    started = time.perf_counter()
    for name in chosen or BENCHES:
        BENCHES[name]()
    load = os.getloadavg()[0]
    seconds = time.perf_counter() - started
    print(f"\n{seconds:.0f} s, torch {torch.__version__}, {os.cpu_count()} cores, load {load:.1f} (an idle machine: 1)")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--memory"]:
        print_memory(sys.argv[2])
    else:
        main(sys.argv[1:])
