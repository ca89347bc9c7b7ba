"""Inference on a whole graph in bounded memory: one step of messages after the other, some nodes at a time.

What a model does between two steps of messages is done node by node (linear layers, activations, norms in evaluation
mode). So step k needs, for some nodes, only what step k - 1 gave for them and for those that they receive from. The
model's own forward runs on that neighbourhood: earlier steps return what is known, and the end of step k ends it.

Where a step reads one tensor and nothing else is needed later (GCN, not a layer that adds a node's own features), the
forward runs on to where step k + 1 would start, and what that step reads is kept instead: after a linear layer, which
is often much narrower.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from inspect import signature
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skerry.discovery.forward_contexts import ValuesOfInputs, without_side_effects
from skerry.graphs.live_bytes import LiveBytes
from skerry.graphs.neighbourhood import Neighbourhoods
from skerry.model.graph_inputs import call_on_graph, map_graph
from skerry.runtimes.runtime import FullModel
from skerry.runtimes.streamed import Streamed
from skerry.subnet.side_by_side import mean_of_nets

_SAMPLE = 32  # nodes on which the result is compared with an ordinary forward
_FIRST = 1  # nodes of the first part
_GROWTH = 4  # of the number of nodes from one part to the next
_MARGIN = 0.75  # of max_bytes, since parts of equal size differ
_TOLERANCE = 1e-4

Keep = Literal["all", "latest", "read"]


def infer(
    model: nn.Module | FullModel,
    graph: Any,
    *,
    nodes: Tensor | None = None,
    max_bytes: int = 2**28,
    folder: str | Path | None = None,
) -> Tensor:
    """Return the outputs of ``model`` for nodes of ``graph``, computed some nodes at a time.

    Nets side by side (``relay``, ``ensemble``) run one after the other. Given ``result.full`` where no process holds
    the model, each process runs its own net, nothing of the model is sent, and all get the mean. Every process must
    call it then.

    It is first compared with an ordinary forward on a few nodes. Sums over neighbours are in the same order as there,
    so results differ by rounding only.

    Args:
        model: a model of PyTorch Geometric whose output has a row for each node, or ``result.full``.
        graph: ``Data`` with ``edge_index``, on the CPU, and it must fit in memory. ``x`` may be sparse (CSR).
        nodes: for which nodes, each once; int64 numbers or a mask (bool). Steps are then computed only for those nodes
            that they receive from. None: all.
        max_bytes: for what the model computes, beside the outputs. What a step gives for all nodes lies in a temporary
            file if it needs more than half of this.
        folder: where that file is; None: the system's folder of temporary files, which may itself be in memory.

    Returns:
        (nodes, ...), on the CPU, in the order of ``nodes``.

    Raises:
        ValueError: there are no such nodes; the model does more than pass messages along edges: it normalises over
            nodes, or pools them; its subnets share weights and no process holds it; or ``max_bytes`` is too little for
            a node with all its neighbours, which are read at once.

    Example (docs/graphs.md has one that is tested)::

        graph = Data(x=torch.randn(5, 8), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]))
        infer(GCN(8, 16, num_layers=2, out_channels=3), graph)  # (5, 3)
    """
    hoods = Neighbourhoods(graph)
    wanted = _numbers(nodes, graph.num_nodes)

    def of(net: nn.Module) -> Tensor:
        with _one_step_at_a_time(net) as steps, tempfile.TemporaryDirectory(dir=folder) as files:
            num_steps, keep = _compared(steps, hoods, min(_SAMPLE, graph.num_nodes))
            return _Layers(steps, hoods, max_bytes, Path(files), keep=keep).outputs(num_steps, wanted)

    if isinstance(model, nn.Module) and not isinstance(model, Streamed):
        return mean_of_nets(model, of)
    return model.mean_of_nets(of)


def _numbers(nodes: Tensor | None, num_nodes: int) -> Tensor | None:
    """Return the numbers of ``nodes``, which may be a mask; None: all."""
    if nodes is None:
        return None
    if nodes.dtype == torch.bool and nodes.shape == (num_nodes,):
        nodes = nodes.nonzero().flatten()
    once = nodes.dim() == 1 and nodes.dtype == torch.int64 and len(nodes.unique()) == len(nodes) > 0  # type: ignore[no-untyped-call]
    if not once or not 0 <= int(nodes.min()) <= int(nodes.max()) < num_nodes:
        raise ValueError(
            f"nodes: got {tuple(nodes.shape)} of {nodes.dtype}, expected a mask of {num_nodes} nodes with at least one "
            f"True, or int64 numbers from 0 to {num_nodes - 1}, each once"
        )
    return nodes


class _Reached(Exception):
    """The step that is computed is done."""

    def __init__(self, result: Tensor) -> None:
        self.result = result


class _Steps:
    """Runs a net's forward up to a step of messages, from the results of earlier steps.

    Attributes:
        net: the net.
        device: where it is.
        count: how many steps the last run took.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
        self._known: list[Tensor] | None = []
        self._ahead = False
        self._num_nodes = self._num_members = self.count = 0
        self._read: dict[int, str] = {}  # by step: the tensor of nodes that it reads,
        self._shapes: dict[int, torch.Size] = {}  # and of what it gives for a node

    def run(self, graph: Any, num_nodes: int, known: list[Tensor] | None, *, ahead: bool = False) -> Tensor:
        """Return the result of step ``len(known)`` for the first nodes, or the net's outputs if it has no such step.

        With ``ahead`` it takes that step and returns what the next one reads, or the outputs if it is the last one;
        then ``known`` is what each step but the first reads.

        Args:
            graph: of a neighbourhood.
            num_nodes: for how many nodes the result is wanted; they come first.
            known: for each earlier step its result for all nodes of ``graph``; None: take all steps. What is on meta
                is not needed, and nothing is computed from it.
        """
        self._known, self._num_nodes, self._num_members, self.count = known, num_nodes, graph.num_nodes, 0
        self._ahead = ahead
        try:
            with ValuesOfInputs():
                here = map_graph(lambda t: t if t.is_meta else t.to(self.device), graph)
                output = call_on_graph(self.net, here)
        except _Reached as reached:
            return reached.result[:num_nodes].cpu()
        if not isinstance(output, Tensor) or output.shape[:1] != (graph.num_nodes,):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"the model returns {shape} on {graph.num_nodes} nodes, expected a tensor with a row for each; call it "
                "on the whole graph (or on each graph of a data set) instead"
            )
        return output[:num_nodes].cpu()

    def propagate(self, module: Any, own: Any, edge_index: Tensor, *args: Any, **given: Any) -> Tensor:
        """Take the place of a module's ``propagate``: return what is known, or do what is asked for and end there."""
        step, self.count = self.count, self.count + 1
        result: Tensor
        if self._known is None:
            result = own(edge_index, *args, **given)
            return result
        if step < len(self._known):
            known = self._known[step]
            if self._ahead:  # what has been read: of what was given then only the shape is known
                return known.new_empty(self._num_members, *self._shapes[step], device="meta")
            return known
        if self._ahead:
            if step > len(self._known):
                raise _Reached(given[self._name_of_read(step, module, given)])
            if step:
                given = given | {self._read[step]: self._known[-1]}
        if isinstance(edge_index, Tensor) and edge_index.layout == torch.strided:
            edge_index, given = self._into_wanted(module, edge_index, given)
        result = own(edge_index, *args, **given)
        if result.shape[:1] != (self._num_members,):
            raise ValueError(
                f"{type(module).__name__}: gives {tuple(result.shape)} on {self._num_members} nodes, expected a row "
                "for each; call the model on the whole graph"
            )
        if not self._ahead:
            raise _Reached(result)
        self._shapes[step] = result.shape[1:]
        return result

    def _name_of_read(self, step: int, module: Any, given: dict[str, Any]) -> str:
        """Return the name of the one tensor of nodes that a step reads; ValueError if there are several, or none."""
        if step not in self._read:
            ends = {name[:-2] for name in signature(module.message).parameters if name.endswith(("_i", "_j"))}
            names = [name for name in ends if given.get(name) is not None]
            if len(names) != 1 or not isinstance(given[names[0]], Tensor):
                raise ValueError(f"step {step} reads more than one tensor of nodes")
            self._read[step] = names[0]
        return self._read[step]

    def _into_wanted(self, module: Any, edge_index: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Leave out edges into other nodes, which were there for degrees, and what is given for these edges."""
        num_edges = edge_index.shape[1]
        if num_edges == self._num_members:  # what is given for edges cannot be told from what is given for nodes
            return edge_index, given
        wanted = edge_index[1 if module.flow == "source_to_target" else 0] < self._num_nodes
        of_edges = {k: v for k, v in given.items() if isinstance(v, Tensor) and v.shape[:1] == (num_edges,)}
        return edge_index[:, wanted], given | {key: value[wanted] for key, value in of_edges.items()}


@contextmanager
def _one_step_at_a_time(net: nn.Module) -> Iterator[_Steps]:
    """Let a net run up to one step of messages; afterwards it is as it was, also what its modules have cached."""
    steps = _Steps(net)
    with without_side_effects(net):
        module: Any
        for module in net.modules():
            if hasattr(module, "propagate") and hasattr(module, "flow"):
                for name in [name for name in vars(module) if name.startswith("_cached")]:
                    setattr(module, name, None)
                module.cached = False
                module.propagate = partial(steps.propagate, module, module.propagate)
        yield steps


def _compared(steps: _Steps, hoods: Neighbourhoods, num_nodes: int) -> tuple[int, Keep]:
    """Return how many steps of messages there are, and the least that has to be kept.

    Raises:
        ValueError: step by step the first nodes of a part of the graph get other outputs than in one forward.
    """
    members, _ = hoods.members(torch.arange(num_nodes))
    part = hoods.induced(members[: 2 * num_nodes])
    expected = steps.run(part, part.num_nodes, None)
    num_steps, size = steps.count, _largest(expected)

    def difference(keep: Keep) -> float:
        layers = _Layers(steps, Neighbourhoods(part), 2**30, None, first=3, keep=keep)
        return _largest(layers.outputs(num_steps) - expected)

    least: Keep
    for least in ("read", "latest"):
        with suppress(Exception):  # whatever a forward raises that looks at values which it would need
            if num_steps and difference(least) <= _TOLERANCE * size:
                return num_steps, least
    if not (found := difference("all")) <= _TOLERANCE * size:
        raise ValueError(
            f"{type(steps.net).__name__}: outputs differ by {found:.1e} where nodes are taken a few at a time, so its "
            "forward does more than pass messages along edges (it normalises over nodes or pools them?); call it on "
            "the whole graph"
        )
    return num_steps, "all"


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


class _Layers:
    """The results of all steps for all nodes of a graph.

    Args:
        steps: runs the net.
        hoods: of the graph.
        max_bytes: for what the net computes.
        files: a folder for the results of steps; None: they stay in memory.
        first: how many nodes are computed first.
        keep: what is needed later: "all" features and results; the "latest" result; or what the next step "read"s.
    """

    def __init__(
        self,
        steps: _Steps,
        hoods: Neighbourhoods,
        max_bytes: int,
        files: Path | None,
        *,
        first: int = _FIRST,
        keep: Keep = "all",
    ) -> None:
        self._steps, self._hoods, self._files, self._first, self._keep = steps, hoods, files, first, keep
        self._max_bytes = max_bytes
        self._known: list[Tensor] = []  # for each step, rows of the nodes that are needed,
        self._places: list[Tensor] = []  # and which row is whose; 0 for nodes that are not needed
        self._in_memory: dict[int, int] = {}  # bytes by step

    def outputs(self, num_steps: int, nodes: Tensor | None = None) -> Tensor:
        """Return the outputs for ``nodes`` (None: all), step by step."""
        ahead = self._keep == "read"  # then the last step and the end are one
        needed = [torch.arange(self._hoods.num_nodes) if nodes is None else nodes] * (1 if ahead else 2)
        while len(needed) < num_steps + (not ahead):
            needed.append(needed[-1] if nodes is None else self._hoods.members(needed[-1])[0])
        while len(needed) > 1:
            own = needed.pop()
            result = self._of(own, self._room)
            if self._keep != "all":
                self._hoods = self._hoods.without_features()
                self._known = [torch.empty_like(one, device="meta") for one in self._known]
                self._in_memory = {k: n for k, n in self._in_memory.items() if k == len(self._known)}
            self._known.append(result)
            self._places.append(torch.zeros(self._hoods.num_nodes, dtype=torch.int64))
            self._places[-1][own] = torch.arange(len(own))
        return self._of(needed[0], torch.empty)

    def _of(self, needed: Tensor, room: Callable[..., Tensor]) -> Tensor:
        """Return the result of the next step for nodes, a row for each, in ``room(shape, dtype=...)``."""
        at, num, result = 0, self._first, None
        per_row = 0.0  # bytes per member and edge, in the last part
        while result is None or at < len(needed):
            nodes = needed[at : at + num]
            members, num_edges = self._hoods.members(nodes)
            rows, most = len(members) + num_edges, self._max_bytes - sum(self._in_memory.values())
            if rows * per_row > _MARGIN * most and len(nodes) > 1:
                num = len(nodes) // 2
                continue
            with LiveBytes() as live, ValuesOfInputs():
                part = self._part(nodes, members)
            if live.most > most and len(nodes) == 1:
                raise ValueError(
                    f"max_bytes={self._max_bytes}: node {int(nodes[0])} with its {num_edges} edges takes "
                    f"{self._max_bytes - most + live.most} bytes in step {len(self._known)}; give more"
                )
            per_row = live.most / rows
            if result is None:
                result = room((len(needed), *part.shape[1:]), dtype=part.dtype)
            result[at : at + len(nodes)] = part
            at, num = at + len(nodes), num * _GROWTH
        return result

    def _part(self, nodes: Tensor, members: Tensor) -> Tensor:
        """Return the result of the next step for ``nodes``."""
        rows = torch.cat([members, members[:1]])
        found = [one[place[rows]] for one, place in zip(self._known, self._places, strict=True)]
        known = [one if one.is_meta else one.to(self._steps.device) for one in found]
        return self._steps.run(self._hoods.graph(members), len(nodes), known, ahead=self._keep == "read")

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory for the result of a step, or a file where it would need more than half of the memory."""
        step, num_bytes = len(self._known), prod(shape) * dtype.itemsize
        if self._files is None or sum(self._in_memory.values()) + num_bytes <= self._max_bytes / 2:
            self._in_memory[step] = num_bytes
            return torch.empty(shape, dtype=dtype)
        path = str(self._files / f"step {step}")
        return torch.from_file(path, shared=True, size=prod(shape), dtype=dtype).view(shape)
