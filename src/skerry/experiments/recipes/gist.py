"""GIST: graph networks as independent subnets, on Cora, CiteSeer and WordNet. Needs the extra ``graphs``."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from skerry.choose import choose
from skerry.discovery import discover
from skerry.experiments.config import Config
from skerry.experiments.datasets.graphs import Graph, citeseer, cora, wordnet
from skerry.experiments.models.graph_net import GraphNet
from skerry.experiments.recipes.graph_task import GraphTask
from skerry.experiments.recipes.recipe import Recipe, settings_per_method, whole_number
from skerry.graphs import clusters, whole
from skerry.graphs.geometric import geometric
from skerry.plan.table import Plan
from skerry.training.worker import Data


def gist_cora() -> Recipe:
    """A GCN of 3 layers, 256 wide, on Cora, as in the paper."""
    return _planetoid("cora", cora, "81.52; GIST 80.82 / 81.18 / 79.58")


def gist_citeseer() -> Recipe:
    """The same on CiteSeer."""
    return _planetoid("citeseer", citeseer, "75.02; GIST 75.82 / 76.21 / 75.39")


def _planetoid(name: str, load: Callable[[], Graph], paper: str) -> Recipe:
    """Return the paper's net: every step takes the whole graph, and 400 steps of a subnet are 20 rounds.

    ``data.labels``: "all" workers learn from all labels, as in the paper, or they "split" them.

    ``single`` trains 400 steps as well, m times the operations of a worker. In the paper ``ist`` has 400 / m steps.

    References: Wolfe et al., GIST: distributed training for large-scale graph convolutional networks, 2021, arXiv
    2102.10424, section 5.1.
    """
    steps = {"rounds": 20, "local_steps": 20}
    replicas = {"rounds": 5, "local_steps": 20}
    return Recipe(
        summary=f"GCN with 3 layers, 256 wide, on {name}, the whole graph in each step",
        config=Config(
            recipe=f"gist-{name}",
            model={"kind": "gcn", "hidden": 256, "layers": 3, "heads": 8, "dropout": 0.5},
            data={"labels": "all"},
            optimizer={"name": "Adam", "lr": 0.01, "weight_decay": 5e-4},
            batch_size=1,
            eval_every=5,
        ),
        methods=settings_per_method(
            subnets=steps, replicas=replicas, nested=replicas | {"rounds": 10}, own={"single": steps}
        ),
        task=partial(_task, load=load, batches=_whole),
        model=_model,
        paper="Wolfe et al. (arXiv 2102.10424), test accuracy, best over epochs: one worker "
        + paper
        + " with 2 / 4 / 8 workers.",
    )


def gist_wordnet() -> Recipe:
    """GraphSAGE 3280-256-256-45 on clusters of WordNet, in the role of the paper's Reddit.

    ``model.kind``: "sage", "gat", "gatv2" or "gcn". ``data.own``: whose the clusters are, "all" workers', a "random"
    part of them each, or "regions". ``batch_size`` counts clusters, of ``data.parts``.
    """
    steps = {"rounds": 40, "local_steps": 50}
    replicas = {"rounds": 10, "local_steps": 50}
    return Recipe(
        summary="GraphSAGE 3280-256-256-45 on clusters of WordNet (kinds: sage, gat, gatv2, gcn)",
        config=Config(
            recipe="gist-wordnet",
            model={"kind": "sage", "hidden": 256, "layers": 3, "heads": 16, "dropout": 0.3},
            data={"own": "random", "parts": 1500},
            optimizer={"name": "Adam", "lr": 0.01},
            batch_size=30,
            eval_batch_size=10**6,
        ),
        methods=settings_per_method(subnets=steps, replicas=replicas, nested=replicas | {"rounds": 20}, own={}),
        task=partial(_task, load=wordnet, batches=_clusters),
        model=_model,
        paper="Wolfe et al. (arXiv 2102.10424), GraphSAGE on Reddit: one worker 96.09; GIST 96.40 / 96.16 / 95.46 and "
        "local SGD 96.37 / 95.00 / 93.40 with 2 / 4 / 8 workers.",
    )


def gist_wordnet_wide() -> Recipe:
    """A GCN of two layers, 8,192 wide, on WordNet, for 8 workers; no process has all of it."""
    recipe = gist_wordnet()
    config = recipe.config.change({
        "recipe": "gist-wordnet-wide", "method": "relay", "workers": 8, "runtime": "processes",
        "model": {"kind": "gcn", "hidden": 8192, "layers": 2, "heads": 1, "dropout": 0.3},
        "optimizer.lr": 0.003, "batch_size": 15,
    })  # fmt: skip
    methods = {method: {**own, "rounds": max(1, own["rounds"] // 4)} for method, own in recipe.methods.items()}
    summary = "GCN with 2 layers, 8192 wide, on clusters of WordNet, 8 workers in processes"
    return replace(recipe, summary=summary, config=config, methods=methods)


def _task(config: Config, load: Callable[[], Graph], batches: Callable[[Any, Config], Data]) -> GraphTask:
    graph = load()
    return GraphTask(graph=graph.data(), classes=graph.num_classes, batches=batches)


def _whole(graph: Any, config: Config) -> Data:
    if config.batch_size != 1:
        raise ValueError(
            f"batch_size={config.batch_size}: each step of {config.recipe} takes the whole graph, expected 1"
        )
    return whole(graph, config.workers, config.data["labels"], seed=config.seed)


def _clusters(graph: Any, config: Config) -> Data:
    parts = whole_number(config, "data.parts")
    return clusters(graph, config.workers, parts, config.batch_size, config.data["own"], seed=config.seed)


def _model(config: Config, sizes: Mapping[str, int]) -> tuple[nn.Module, Plan]:
    """Return a net on meta and its plan."""
    of = geometric("nn")
    kinds = {"gcn": of.GCNConv, "sage": of.SAGEConv, "gat": of.GATConv, "gatv2": of.GATv2Conv}
    kind, dropout = choose(config.model["kind"], kinds, "model.kind"), config.model["dropout"]
    hidden, layers, heads = (whole_number(config, f"model.{name}") for name in ("hidden", "layers", "heads"))
    if kind.startswith("gat") and hidden % heads:
        raise ValueError(f"model.hidden={hidden}: expected a multiple of model.heads={heads}")

    if layers < 2:
        raise ValueError(f"model.layers={layers}: expected at least 2, the last of which has a row per class")
    if not (isinstance(dropout, int | float) and 0 <= dropout <= 1):
        raise ValueError(f"model.dropout={dropout!r}: expected a number from 0 to 1")

    def conv(inputs: int, outputs: int, *, last: bool) -> nn.Module:
        if kind.startswith("gat"):
            num = 1 if last else heads
            made: nn.Module = kinds[kind](inputs, outputs // num, heads=num)
        else:
            made = kinds[kind](inputs, outputs)
        return made

    # A layer of SAGE passes its inputs on as messages, so features go through a layer of their own first.
    first = kind == "sage"
    ends = [*([] if first else [sizes["features"]]), *[hidden] * (layers - 1), sizes["classes"]]
    pairs = list(pairwise(ends))
    with torch.device("meta"):
        convs = [conv(a, b, last=k == len(pairs) - 1) for k, (a, b) in enumerate(pairs)]
        net = GraphNet(convs, dropout, of.Linear(sizes["features"], hidden) if first else None)
    ring = torch.arange(16)
    example = torch.eye(16, sizes["features"]), torch.stack([ring, ring.roll(1)])
    return net, discover(net, example)
