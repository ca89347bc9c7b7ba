"""Graph networks of PyTorch Geometric: which nodes and edges workers train on, and a test set of nodes.

The extra ``graphs``: torch-geometric, and pymetis for clusters. pyg-lib and torch-sparse are not needed.
"""

from skerry.graphs.clusters import clusters
from skerry.graphs.neighbours import neighbours
from skerry.graphs.nodes import Nodes
from skerry.graphs.on_graph import OnGraph
from skerry.graphs.whole import whole
from skerry.model.graph_inputs import GraphInputs

__all__ = ["GraphInputs", "Nodes", "OnGraph", "clusters", "neighbours", "whole"]
