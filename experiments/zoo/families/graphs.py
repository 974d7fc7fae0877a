"""Networks on graphs: torch_geometric's models, and two layers of each of its convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch_geometric import nn

from experiments.zoo.entries import Entry

NODES, EDGES, WIDTH = 20, 60, 8

#: Convolutions on x and edge_index, with what they ask for beside the widths.
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "GCNConv": {}, "SAGEConv": {}, "GraphConv": {}, "GATConv": {"heads": 1}, "GATv2Conv": {"heads": 1}, "TransformerConv": {},
    "TAGConv": {}, "ARMAConv": {}, "SGConv": {}, "SSGConv": {"alpha": 0.5}, "ChebConv": {"K": 2}, "MFConv": {}, "LEConv": {},
    "ClusterGCNConv": {}, "GENConv": {}, "SuperGATConv": {}, "FeaStConv": {}, "GeneralConv": {}, "FiLMConv": {},
    "ResGatedGraphConv": {}, "MixHopConv": {"powers": [0]}, "EGConv": {"num_heads": 4},
}  # fmt: skip
MODELS = ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN")


def entries() -> Iterator[Entry]:
    for name, settings in CONVOLUTIONS.items():
        yield Entry("graphs", name, _convolutions(name, settings), _graph)
    for name in MODELS:
        yield Entry("graphs", name, _model(name), _graph)
    yield Entry("graphs", "SchNet", lambda: nn.SchNet(16, 16, 2, 10, interaction_graph=_pairs), _molecule)
    yield Entry("graphs", "DeepGCN", _deep, _graph)
    yield Entry("graphs", "GINEConv", lambda: nn.GINEConv(torch.nn.Linear(WIDTH, WIDTH), edge_dim=3), _graph_with_edges)
    yield Entry("graphs", "NNConv", lambda: nn.NNConv(WIDTH, WIDTH, torch.nn.Linear(3, WIDTH * WIDTH)), _graph_with_edges)
    yield Entry("graphs", "CGConv", lambda: nn.CGConv(WIDTH, dim=3), _graph_with_edges)


class _Two(torch.nn.Module):
    def __init__(self, first: torch.nn.Module, second: torch.nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def _convolutions(name: str, settings: dict[str, Any]) -> Callable[[], torch.nn.Module]:
    kind = getattr(nn, name)
    return lambda: _Two(kind(WIDTH, WIDTH, **settings), kind(WIDTH, WIDTH, **settings))


def _model(name: str) -> Callable[[], torch.nn.Module]:
    return lambda: getattr(nn, name)(WIDTH, 16, 2, 4)


def _deep() -> torch.nn.Module:
    layer = nn.DeepGCNLayer(nn.GENConv(WIDTH, WIDTH), nn.LayerNorm(WIDTH), torch.nn.ReLU(), block="res+")
    return _Two(layer, nn.GCNConv(WIDTH, WIDTH))


def _graph(model: torch.nn.Module) -> Any:
    return (torch.randn(NODES, WIDTH), torch.randint(0, NODES, (2, EDGES))), {}


def _graph_with_edges(model: torch.nn.Module) -> Any:
    (x, edges), _ = _graph(model)
    return (x, edges, torch.randn(EDGES, 3)), {}


def _molecule(model: torch.nn.Module) -> Any:
    return (torch.randint(1, 9, (NODES,)), 2 * torch.randn(NODES, 3)), {}


def _pairs(positions: torch.Tensor, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of atoms and their distances."""
    edges = torch.combinations(torch.arange(len(positions))).t()
    return edges, (positions[edges[0]] - positions[edges[1]]).norm(dim=-1)
