import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ash import SparseBatch, UserError


def two() -> SparseBatch:
    """A graph of three nodes with a doubled edge, and one of two nodes."""
    first, second = torch.tensor([[0, 1], [2, 0], [0, 1]]), torch.tensor([[1, 1]])
    return SparseBatch.from_entries([first, second], [torch.tensor([1.0, 2.0, 3.0]), torch.ones(1)], [(3, 3), (2, 2)])


def test_worked_by_hand():
    batch = two()
    assert len(batch) == 2 and batch.rank == 2 and batch.entries == 4
    assert batch.instance.tolist() == [0, 0, 0, 1] and batch.starts.tolist() == [0, 3, 4]
    assert batch.ids.tolist() == [1, 6, 1, 9 + 3]
    dense = batch.to_dense()
    assert dense.tolist() == [[[0, 4, 0], [0, 0, 0], [2, 0, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 0]]]


def test_coalesce_adds_duplicates_and_keeps_gradients():
    batch = two()
    values = batch.values.clone().requires_grad_()
    whole = batch.with_values(values).coalesce()
    assert whole.indices.tolist() == [[0, 1], [2, 0], [1, 1]] and whole.values.tolist() == [4, 2, 1]
    whole.values[0].backward()
    assert values.grad.tolist() == [1, 0, 1, 0]


def test_entries_that_are_not_zero_stay():
    entries, values = torch.tensor([[0, 1], [1, 1], [2, 0]]), torch.tensor([0.0, 2.0, -1.0])
    batch = SparseBatch.from_entries([entries], [values], [(3, 2)])
    found = batch.nonzero()
    assert found.indices.tolist() == [[1, 1], [2, 0]] and found.values.tolist() == [2.0, -1.0]
    channels = batch.with_values(torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert channels.nonzero().indices.tolist() == [[1, 1]]


def test_parts_and_their_union():
    batch = two()
    again = SparseBatch.cat(list(batch))
    for name in ("instance", "indices", "values", "sizes"):
        assert torch.equal(getattr(again, name), getattr(batch, name))
    assert batch[-1].sizes.tolist() == [[2, 2]]


def test_permute_turns_edges_round():
    assert torch.equal(two().permute(1, 0).to_dense(), two().to_dense().transpose(1, 2))


@pytest.mark.parametrize(
    ("indices", "values", "words"),
    [([[0, 3]], [1.0], "index < size"), ([[-1, 0]], [1.0], "index < size"), ([[0, 0]], [float("nan")], "finite")],
)
def test_bad_entries_are_named(indices, values, words):
    batch = SparseBatch.from_entries([torch.tensor(indices)], [torch.tensor(values)], [(3, 3)])
    with pytest.raises(UserError, match=words):
        batch.check()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("indices", "values"), [(torch.int32, torch.float32), (torch.int64, torch.int64)])
def test_other_types_are_refused(indices, values):
    instance, sizes = torch.zeros(1, dtype=torch.int64), torch.tensor([[3, 3]])
    with pytest.raises(UserError, match="expected torch.int64, and floating-point values"):
        SparseBatch(instance, torch.zeros(1, 2, dtype=indices), torch.ones(1, dtype=values), sizes)


def test_duplicates_are_refused_on_request():
    assert two().check().entries == 4
    with pytest.raises(UserError, match="every position once"):
        two().check(duplicates="refuse")


def test_different_ranks_and_no_tensors_are_refused():
    vector = SparseBatch.from_entries([torch.tensor([[1]])], None, [(4,)])
    with pytest.raises(UserError, match=r"ranks \[1, 2\]"):
        SparseBatch.cat([vector, two()])
    with pytest.raises(UserError, match="at least one"):
        SparseBatch.cat([])


def test_an_empty_graph_is_a_batch():
    empty = SparseBatch.from_entries([torch.zeros(0, 2)], None, [(5, 5)]).check("refuse")
    assert empty.coalesce().entries == 0 and empty.to_dense().sum() == 0


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3), st.integers(0, 15))
def test_coalesced_is_sorted_and_the_same_tensors(sizes, n):
    shapes = torch.tensor(sizes)
    instance = torch.randint(len(sizes), (n,)).sort().values
    values = torch.randn(n, 2, dtype=torch.float64, requires_grad=True)
    batch = SparseBatch(instance, (torch.rand(n, 2) * shapes[instance]).long(), values, shapes)
    whole = batch.coalesce().check("refuse")
    assert torch.allclose(whole.to_dense(), batch.to_dense())
    assert whole.coalesce() is whole
    fresh = SparseBatch(whole.instance, whole.indices, whole.values, whole.sizes)
    assert torch.equal(whole.ids, fresh.ids) and torch.equal(whole.offsets, fresh.offsets)
    assert whole.ids.tolist() == sorted(set(batch.ids.tolist()))


def test_other_values_at_known_positions():
    batch = two()
    ids = batch.ids
    other = batch.with_values(torch.zeros(4, 3))
    assert other.ids is ids and other.values.shape == (4, 3)
