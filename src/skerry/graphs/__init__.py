"""Graph networks of PyTorch Geometric: which nodes and edges workers train on, a test set of nodes, and inference.

The extra ``graphs``: torch-geometric, and pymetis for clusters. pyg-lib and torch-sparse are not needed.
"""

from skerry.graphs.clusters import clusters
from skerry.graphs.infer import infer
from skerry.graphs.neighbours import neighbours
from skerry.graphs.nodes import Nodes
from skerry.graphs.on_graph import OnGraph
from skerry.graphs.whole import whole
from skerry.model.graph_inputs import GraphInputs

__all__ = ["GraphInputs", "Nodes", "OnGraph", "clusters", "infer", "neighbours", "whole"]
