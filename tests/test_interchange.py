"""Sparse tensors of other packages, there and back: values, gradients, bad input."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ash import EdgeIndex, EdgeLayer, EdgeWiring, SparseBatch, SparseLayer, StaticWiring, UserError, as_sparse_batch


def dense(*shape: int, seed: int = 1) -> Tensor:
    """About a third of the numbers are not 0."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source) * (torch.rand(shape, generator=source) < 0.35)


def graphs() -> SparseBatch:
    """Three graphs, of three nodes, of one without edges, and of two with an edge twice; gradients by the values."""
    indices = [torch.tensor([[0, 1], [2, 0]]), torch.zeros(0, 2), torch.tensor([[1, 0], [0, 0], [1, 0]])]
    values = [torch.tensor([2.0, 3.0]), torch.zeros(0), torch.tensor([5.0, 7.0, 11.0])]
    batch = SparseBatch.from_entries(indices, values, [(3, 3), (1, 1), (2, 2)])
    return batch.with_values(batch.values.requires_grad_())


def same(one: SparseBatch, other: SparseBatch) -> bool:
    """Whether both hold the same entries in the same order."""
    names = ("instance", "indices", "values", "sizes")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


TORCH = {
    "dense": lambda x: x,
    "COO": lambda x: x.to_sparse_coo(),
    "CSR": lambda x: x.to_sparse_csr(),
    "CSC": lambda x: x.to_sparse_csc(),
    "int32 CSR": lambda x: torch.sparse_csr_tensor(
        x.to_sparse_csr().crow_indices().int(),
        x.to_sparse_csr().col_indices().int(),
        x.to_sparse_csr().values(),
        x.shape,
    ),
}


@pytest.mark.parametrize("convert", TORCH.values(), ids=TORCH)
@pytest.mark.parametrize("shape", [(4, 5), (1, 1), (3, 1)], ids=str)
def test_one_torch_matrix(convert: Any, shape: tuple[int, ...]) -> None:
    x = dense(*shape)
    found = as_sparse_batch(convert(x))
    assert len(found) == 1 and found.sizes.tolist() == [list(shape)]
    assert torch.equal(found.to_dense()[0], x)


@pytest.mark.parametrize("name", ["dense", "COO"])
def test_a_batch_of_torch_matrices(name: str) -> None:
    x = dense(3, 4, 5)
    assert torch.equal(as_sparse_batch(TORCH[name](x)).to_dense(), x)


@pytest.mark.parametrize("name", ["to_sparse_csr", "to_sparse_csc"])
def test_batched_compressed_matrices(name: str) -> None:
    x = torch.tensor([[[0.0, 1, 0], [2, 0, 0]], [[3, 0, 0], [0, 0, 4]]])
    assert torch.equal(as_sparse_batch(getattr(x, name)()).to_dense(), x)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_rank_tells_whether_there_is_a_batch(rank: int) -> None:
    x = dense(2, 3, 4) if rank > 1 else dense(2, 3)
    for stored in (x, x.to_sparse_coo()):
        found = as_sparse_batch(stored, rank=rank)
        assert found.rank == rank and len(found) == (1 if rank == 3 else 2)
        assert torch.equal(found.to_dense().reshape(x.shape), x)


def test_a_batch_whose_entries_are_in_any_order() -> None:
    whole = dense(3, 4, 5).to_sparse_coo().coalesce()
    order = torch.randperm(whole.values().numel(), generator=torch.Generator().manual_seed(0))
    mixed = torch.sparse_coo_tensor(whole.indices()[:, order], whole.values()[order], whole.shape)
    assert same(as_sparse_batch(mixed, rank=2).coalesce(), as_sparse_batch(whole, rank=2))


def test_dense_dimensions_are_channels() -> None:
    x = dense(3, 4, 2)
    found = as_sparse_batch(x.to_sparse_coo().coalesce(), rank=3)
    hybrid = as_sparse_batch(x.to_sparse(sparse_dim=2))
    assert found.values.dim() == 1 and hybrid.values.shape[1:] == (2,)
    assert torch.equal(hybrid.to_dense()[0], x)
    assert torch.equal(as_sparse_batch(x.to_sparse_csr(dense_dim=1)).to_dense()[0], x)


SCIPY = ["csr_matrix", "csc_matrix", "coo_matrix", "lil_matrix", "dok_matrix", "bsr_matrix", "csr_array", "coo_array"]


@pytest.mark.parametrize("kind", SCIPY)
def test_scipy(kind: str) -> None:
    x = dense(4, 5).double()
    found = as_sparse_batch(getattr(scipy.sparse, kind)(x.numpy()))
    assert found.values.dtype == torch.float64
    assert torch.equal(found.to_dense()[0], x)


def test_scipy_of_whole_numbers_and_another_dtype() -> None:
    x = scipy.sparse.csr_matrix(np.array([[0, 3], [1, 0]]))
    assert as_sparse_batch(x).values.dtype == torch.get_default_dtype()
    assert as_sparse_batch(x, dtype=torch.float64).values.dtype == torch.float64


def test_lists_of_different_kinds_and_sizes() -> None:
    parts = [dense(2, 2), dense(4, 3).to_sparse_coo(), scipy.sparse.csr_matrix(dense(3, 3).numpy()), graphs()]
    found = as_sparse_batch(parts)
    assert found.sizes.tolist() == [[2, 2], [4, 3], [3, 3], [3, 3], [1, 1], [2, 2]]
    assert torch.equal(found[1].to_dense()[0], dense(4, 3)) and same(found[3], graphs()[0])


def test_a_batch_stays_as_it_is() -> None:
    batch = graphs()
    assert as_sparse_batch(batch) is batch


class Stored:
    """A stand-in for `torch_sparse.SparseTensor`, as far as it is read."""

    def __init__(self, x: Tensor, values: bool):
        self.x, self.values = x, values

    def coo(self) -> tuple[Tensor, Tensor, Tensor | None]:
        row, col = self.x.nonzero().unbind(1)
        return row, col, self.x[row, col] if self.values else None

    def sparse_sizes(self) -> tuple[int, int]:
        return self.x.shape[0], self.x.shape[1]


@pytest.mark.parametrize("values", [True, False])
def test_what_looks_like_torch_sparse(values: bool) -> None:
    x = dense(3, 4)
    assert torch.equal(as_sparse_batch(Stored(x, values)).to_dense()[0], x if values else (x != 0).float())


@pytest.mark.torch_sparse
def test_torch_sparse_there_and_back() -> None:
    pytest.importorskip("torch_sparse", reason="torch-sparse is not installed", exc_type=ImportError)
    batch = graphs()
    back = as_sparse_batch(batch.to_torch_sparse())
    assert same(back, batch.coalesce())
    back.values.sum().backward()
    assert batch.values.grad.tolist() == [1, 1, 1, 1, 1]


def test_to_torch_sparse_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_sparse", None)
    with pytest.raises(UserError, match="pip install"):
        graphs().to_torch_sparse()


# --- there and back, with gradients ---------------------------------------------------------------------


ROUND_TRIPS = {"COO": lambda x: x.to_coo(), "CSR": lambda x: x.to_csr()}


@pytest.mark.parametrize("convert", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_values_keep_their_gradients(convert: Any) -> None:
    batch = graphs()
    found = as_sparse_batch(convert(batch))
    assert torch.equal(found.to_dense(), batch.to_dense())
    (found.values * torch.arange(1, found.entries + 1)).sum().backward()
    assert batch.values.grad.tolist() == [1, 2, 4, 3, 4]  # graph 2 coalesced: (0, 0) third, (1, 0) twice, fourth


def test_to_coo_of_different_sizes_and_channels() -> None:
    batch = graphs()
    assert torch.equal(batch.to_coo().to_dense(), batch.to_dense())
    wide = batch.with_values(torch.randn(batch.entries, 2))
    assert torch.equal(wide.to_coo().to_dense(), wide.to_dense())
    assert as_sparse_batch(wide.to_coo()).values.shape == (5, 2)


def test_to_csr_and_to_scipy_have_every_position_once() -> None:
    batch = graphs()
    for one, csr, matrix in zip(batch, batch.to_csr(), batch.to_scipy(), strict=True):
        assert csr.layout == torch.sparse_csr and matrix.format == "csr"
        assert torch.equal(csr.to_dense(), one.to_dense()[0])
        np.testing.assert_array_equal(matrix.toarray(), one.to_dense()[0].detach().numpy())
    assert [matrix.nnz for matrix in batch.to_scipy()] == [2, 0, 2]
    assert [len(csr.values()) for csr in batch.to_csr()] == [2, 0, 2]


def test_only_matrices_become_matrices() -> None:
    vector = SparseBatch.from_entries([torch.tensor([[1]])], None, [(3,)])
    for convert in (vector.to_csr, vector.to_scipy):
        with pytest.raises(UserError, match="rank 1; expected matrices"):
            convert()
    wide = graphs().with_values(torch.ones(5, 2))
    assert wide.to_csr()[0].shape == (3, 3, 2)
    with pytest.raises(UserError, match="take one channel"):
        wide.to_scipy()


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 12))
def test_edge_index_there_and_back(nodes: list[int], n: int) -> None:
    sizes = torch.tensor(nodes).unsqueeze(1).expand(-1, 2)
    instance = torch.randint(len(nodes), (n,)).sort().values
    indices = (torch.rand(n, 2) * sizes[instance]).long()
    batch = SparseBatch(instance, indices, torch.randn(n, 3), sizes)
    edges = batch.to_edge_index()
    assert edges.num_nodes == sum(nodes) and edges.batch is not None
    assert torch.bincount(edges.batch).tolist() == nodes
    assert same(SparseBatch.from_edge_index(*edges), batch)
    assert same(as_sparse_batch(edges), batch)


def test_edges_in_any_order() -> None:
    """Nodes 0 and 1 are a graph, node 2 is alone; a weight stays with its edge."""
    values = torch.tensor([5.0, 7.0, 11.0], requires_grad=True)
    edges = torch.tensor([[2, 0, 1], [2, 1, 1]])
    found = SparseBatch.from_edge_index(edges, 3, values, torch.tensor([0, 0, 1]))
    assert found.instance.tolist() == [0, 0, 1] and found.indices.tolist() == [[0, 1], [1, 1], [0, 0]]
    assert found.values.tolist() == [7, 11, 5] and found.sizes.tolist() == [[2, 2], [1, 1]]
    found.values[2].backward()
    assert values.grad.tolist() == [1, 0, 0]


def test_one_graph_without_weights() -> None:
    found = SparseBatch.from_edge_index(torch.tensor([[0, 3], [3, 0]]), 4)
    assert len(found) == 1 and found.sizes.tolist() == [[4, 4]] and found.values.tolist() == [1, 1]


@pytest.mark.parametrize("weights", ["edge_weight", "edge_attr", None])
def test_objects_with_an_edge_index(weights: str | None) -> None:
    parts = {"edge_index": torch.tensor([[0, 1], [1, 2]]), "num_nodes": 3}
    data = SimpleNamespace(**parts, **({} if weights is None else {weights: torch.tensor([2, 3])}))
    found = as_sparse_batch([data, data])
    assert len(found) == 2 and found.indices.tolist() == [[0, 1], [1, 2]] * 2
    assert found.values.tolist() == ([1.0] * 4 if weights is None else [2.0, 3.0] * 2)


# --- bad input ------------------------------------------------------------------------------------------------


def coo(indices: list[list[int]], values: list[float] | None = None, shape: tuple[int, ...] = (3, 3)) -> Tensor:
    numbers = torch.ones(len(indices[0])) if values is None else torch.tensor(values)
    return torch.sparse_coo_tensor(torch.tensor(indices), numbers, shape, check_invariants=False)


def csr(crow: list[int], col: list[int]) -> Tensor:
    return torch.sparse_csr_tensor(
        torch.tensor(crow), torch.tensor(col), torch.ones(len(col)), (2, 3), check_invariants=False
    )


EDGES = torch.tensor([[0, 1], [1, 2]])
BAD: dict[str, tuple[Any, str]] = {
    "index too large": (lambda: coo([[0, 3], [0, 1]]), r"\[3, 1\].*shape \[3, 3\]; expected 0 <= index < size"),
    "negative index": (lambda: coo([[0, 1], [0, -1]]), r"\[1, -1\].*expected 0 <= index < size"),
    "instance outside": (lambda: coo([[0, 2], [0, 1], [0, 1]], shape=(2, 3, 3)), r"instances out of order.*below 2"),
    "NaN": (lambda: coo([[0], [1]], [torch.nan]), r"\[0, 1\] with value nan.*expected finite values"),
    "infinite": (lambda: torch.tensor([[0.0, torch.inf]]), "expected finite values"),
    "different ranks": (lambda: [graphs(), SparseBatch.from_entries([EDGES[:, :1]], None, [(3,)])], r"ranks \[1, 2\]"),
    "different channels": (lambda: [graphs(), graphs().with_values(torch.ones(5, 2))], r"channels \[\(\), \(2,\)\]"),
    "no tensors": (lambda: [], "at least one tensor"),
    "too many dimensions": (lambda: torch.zeros(1, 2, 3, 4), r"shape \(1, 2, 3, 4\) for rank 2.*say rank="),
    "too few dimensions": (lambda: coo([[0]], shape=(3,)), r"shape \(3,\) for rank 2; expected 2 dimensions"),
    "row pointers": (lambda: csr([0, 2, 1], [0]), "row pointers that do not rise"),
    "blocks": (lambda: torch.eye(4).to_sparse_bsr((2, 2)), "call x.to_sparse_coo"),
    "complex": (lambda: torch.eye(2, dtype=torch.complex64), "expected real numbers"),
    "no nodes": (lambda: torch.zeros(0, 0), r"sizes \[\[0, 0\]\]; expected sizes of at least 1"),
    "a string": (lambda: "graph", "a str; expected a SparseBatch"),
    "no num_nodes": (lambda: SimpleNamespace(edge_index=EDGES), "without num_nodes"),
    "edge index of another shape": (
        lambda: EdgeIndex(EDGES.new_zeros(3, 2), 3),
        r"shape \(3, 2\).*expected .*\(2, n\)",
    ),
    "edge index of floats": (lambda: EdgeIndex(EDGES.float(), 3), "float32; expected whole numbers"),
    "node too large": (lambda: EdgeIndex(EDGES, 2), r"edge \[1, 2\] among 2 nodes"),
    "negative node": (lambda: EdgeIndex(EDGES - 1, 3), r"edge \[-1, 0\] among 3 nodes"),
    "weights of other edges": (lambda: EdgeIndex(EDGES, 3, torch.ones(3)), r"\(3,\) for 2 edges; expected \(2, …\)"),
    "edges between graphs": (
        lambda: EdgeIndex(EDGES, 3, None, torch.tensor([0, 0, 1])),
        r"edge \[1, 2\] from graph 0 to graph 1",
    ),
    "batch of another length": (lambda: EdgeIndex(EDGES, 3, None, torch.tensor([0, 0])), r"\(2,\) for num_nodes=3"),
    "batch out of order": (lambda: EdgeIndex(EDGES, 3, None, torch.tensor([1, 0, 0])), "never decreasing"),
    "a graph without nodes": (lambda: EdgeIndex(EDGES[:, :1], 3, None, torch.tensor([0, 0, 2])), r"\[2, 0, 1\] nodes"),
}


@pytest.mark.parametrize(("x", "message"), BAD.values(), ids=BAD)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_bad_input(x: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_sparse_batch(x())


def test_the_rank_that_was_asked_for() -> None:
    with pytest.raises(UserError, match="SparseBatch of rank 2; expected rank 3"):
        as_sparse_batch(graphs(), rank=3)
    with pytest.raises(UserError, match="rank=0"):
        as_sparse_batch(dense(2, 2), rank=0)


@pytest.mark.parametrize("grad", [False, True])
def test_duplicates_are_summed_or_refused(grad: bool) -> None:
    x = coo([[0, 0, 1], [1, 1, 2]], [2.0, 3.0, 5.0]).requires_grad_(grad)
    assert as_sparse_batch(x).to_dense()[0].tolist() == [[0, 5, 0], [0, 0, 5], [0, 0, 0]]
    with pytest.raises(UserError, match=r"\[0, 1\].*expected every position once"):
        as_sparse_batch(x, duplicates="refuse")
    with pytest.raises(UserError, match="treatment of duplicates"):
        as_sparse_batch(x, duplicates="average")


EMPTY = {
    "COO": lambda: coo([[], []]),
    "dense": lambda: torch.zeros(3, 3),
    "CSR": lambda: torch.zeros(3, 3).to_sparse_csr(),
    "scipy": lambda: scipy.sparse.csr_matrix((3, 3)),
    "edge index": lambda: EdgeIndex(torch.zeros(2, 0, dtype=torch.int64), 3),
}


@pytest.mark.parametrize("x", EMPTY.values(), ids=EMPTY)
def test_a_graph_without_edges(x: Any) -> None:
    found = as_sparse_batch(x(), duplicates="refuse")
    assert found.entries == 0 and found.sizes.tolist() == [[3, 3]]
    assert SparseLayer((3, 3), 2, bias=False, wiring=partial(StaticWiring, k=5))(found.to(torch.float32)).entries == 0
    assert found.to_csr()[0].shape == (3, 3) and found.to_scipy()[0].nnz == 0
    assert same(SparseBatch.from_edge_index(*found.to_edge_index()), found)


def test_a_single_node_and_nodes_without_edges() -> None:
    assert as_sparse_batch(torch.tensor([[2.0]])).to_dense().tolist() == [[[2.0]]]
    apart = as_sparse_batch(coo([[0], [0]], shape=(9, 9)))
    assert apart.to_edge_index().num_nodes == 9 and apart.to_dense().sum() == 1


def test_an_edge_layer_takes_what_other_packages_hold() -> None:
    layer = EdgeLayer(EdgeWiring(t=2)).eval()
    x = as_sparse_batch([dense(3, 3), dense(4, 4)])
    wanted = layer(x)
    for stored in (x.to_coo(), x.to_scipy(), x.to_edge_index()):
        found = layer(stored)
        assert torch.equal(found.indices, wanted.indices) and torch.equal(found.values, wanted.values)


SMALL = {
    "no edges": torch.zeros(3, 3),
    "a batch without edges": torch.zeros(2, 3, 3),
    "no graphs": torch.zeros(0, 3, 3),
    "one node": torch.eye(1),
    "one edge": torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
    "nodes apart": torch.diag(torch.tensor([1.0, 0.0, 0.0, 1.0])),
}


@pytest.mark.parametrize("graph", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sites", ["entry", "path"])
def test_an_edge_layer_takes_the_smallest_graphs(graph: Tensor, training: bool, sites: str) -> None:
    layer = EdgeLayer(EdgeWiring(sites=sites)).train(training)
    x = as_sparse_batch(graph)
    found = layer(x)
    assert torch.equal(found.sizes, x.sizes)
    assert found.check("refuse").entries == 0 or x.entries > 0
    found.values.sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in layer.parameters())
