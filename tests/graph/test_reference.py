from __future__ import annotations

import pytest
import torch

from kevolve_inductor.graph.reference import evaluate_fp64, resolve_target, to_graph_module
from kevolve_inductor.graph.region import Region, RegionNode, TensorSpec


def spec(*shape, dtype="float32"):
    strides, step = [], 1
    for size in reversed(shape):
        strides.insert(0, step)
        step = step * size if isinstance(size, int) else f"{step}*{size}"
    return TensorSpec(tuple(shape), tuple(strides), dtype, "cpu")


def node(target, *args, specs, **kwargs):
    return RegionNode(target, args, kwargs, specs)


I0, N0, N1 = {"node": "i0"}, {"node": "n0"}, {"node": "n1"}


def router(rows=6, experts=8, k=3):
    """Top-k of a softmax: values and indices."""
    pair = (spec(rows, k), spec(rows, k, dtype="int64"))
    nodes = (
        node("aten._softmax.default", I0, -1, False, specs=(spec(rows, experts),)),
        node("aten.topk.default", N0, k, specs=pair),
        node("getitem", N1, 0, specs=pair[:1]),
        node("getitem", N1, 1, specs=pair[1:]),
    )
    return Region((spec(rows, experts),), nodes, ("n2", "n3"))


def test_module_keeps_names_and_computes_the_region():
    module = to_graph_module(router())
    names = [entry.name for entry in module.graph.nodes]
    assert names == ["i0", "n0", "n1", "n2", "n3", "output"]
    x = torch.randn(6, 8)
    values, indices = module(x)
    want = x.softmax(-1).topk(3)
    assert torch.equal(values, want.values)
    assert torch.equal(indices, want.indices)


def symbolic_region():
    """Each row with zeros up to twice its number of rows: sizes and an expression over them."""
    rows = spec("s0", 4)
    wide = TensorSpec(("s0", "2*s0"), ("2*s0", 1), "float32", "cpu")
    nodes = (
        node("aten.full.default", [{"dim": "s0"}, {"dim": "2*s0"}], 1.5, specs=(wide,), dtype={"dtype": "float32"},
             device={"device": "cpu"}),
        node("aten.sum.dim_IntList", I0, [1], True, specs=(TensorSpec(("s0", 1), (1, 1), "float32", "cpu"),)),
        node("aten.add.Tensor", N0, N1, specs=(wide,)),
    )  # fmt: skip
    return Region((rows,), nodes, ("n2",), (("s0", 0, 0),))


@pytest.mark.parametrize("rows", [3, 7])
def test_symbols_are_read_from_the_inputs(rows):
    x = torch.randn(rows, 4)
    (got,) = to_graph_module(symbolic_region())(x)
    assert torch.equal(got, torch.full((rows, 2 * rows), 1.5) + x.sum(1, keepdim=True))
    (fixed,) = to_graph_module(symbolic_region(), symbols={"s0": rows})(x)
    assert torch.equal(fixed, got)
    assert evaluate_fp64(symbolic_region(), [x]).exact[0].shape == (rows, 2 * rows)


@pytest.mark.parametrize(
    "target", ["aten.no_such_thing.default", "os.system.call", "aten.add", "builtins.eval.x", "add"]
)
def test_only_operators_are_resolved(target):
    with pytest.raises(ValueError):
        resolve_target(target)


def test_everything_floating_becomes_fp64_even_explicit_casts():
    cast = node("prims.convert_element_type.default", I0, {"dtype": "bfloat16"}, specs=(spec(9, dtype="bfloat16"),))
    back = node("prims.convert_element_type.default", N0, {"dtype": "float32"}, specs=(spec(9),))
    third = node("aten.div.Tensor", N1, 3, specs=(spec(9),))
    x = torch.rand(9)
    reference = evaluate_fp64(Region((spec(9),), (cast, back, third), ("n2",)), [x])
    assert reference.exact[0].dtype == torch.float64
    assert torch.equal(reference.exact[0], x.double() / 3)
    assert torch.equal(reference.eager[0], x.bfloat16().float() / 3)


def test_integers_stay_exact_and_quotients_of_integers_are_fp64():
    big = 2**62 + 1
    shift = node("aten.mul.Tensor", I0, 3, specs=(spec(2, dtype="int64"),))
    share = node("aten.div.Tensor", I0, 7, specs=(spec(2),))
    x = torch.tensor([big, 5])
    reference = evaluate_fp64(Region((spec(2, dtype="int64"),), (shift, share), ("n0", "n1")), [x])
    assert torch.equal(reference.exact[0], x * 3)
    assert reference.bitwise == (True, False)
    assert float(reference.exact[1][1]) == 5 / 7


def test_the_default_dtype_is_given_back_when_an_operator_raises():
    bad = node("aten.index.Tensor", I0, [{"node": "i1"}], specs=(spec(1),))
    region = Region((spec(3), spec(1, dtype="int64")), (bad,), ("n0",))
    with pytest.raises(IndexError):
        evaluate_fp64(region, [torch.zeros(3), torch.tensor([5])])
    assert torch.get_default_dtype() == torch.float32


def test_moved_values_are_known_to_be_exact():
    moved = node("aten.slice.Tensor", I0, 0, 1, 4, specs=(spec(3),))
    grown = node("aten.mul.Tensor", N0, 2.0, specs=(spec(3),))
    reference = evaluate_fp64(Region((spec(5),), (moved, grown), ("n0", "n1")), [torch.randn(5)])
    assert reference.bitwise == (True, False)


def test_eagers_own_choice_is_no_fault_and_a_near_tie_is_judged_as_a_choice():
    x = torch.randn(6, 8)
    x[2, 1] = x[2, 5] = 4.0
    own = evaluate_fp64(router(), [x])
    assert own.faults == ()
    other = own.eager[1].clone()
    other[2, :2] = torch.tensor([5, 1]) if int(other[2, 0]) == 1 else torch.tensor([1, 5])
    swapped = evaluate_fp64(router(), [x], {1: other})
    assert swapped.faults == ()
    assert torch.equal(swapped.exact[1], other)


@pytest.mark.parametrize("spoil", ["order", "repeat", "range", "negative", "worse"])
def test_wrong_choices_are_faults(spoil):
    x = torch.arange(48.0).reshape(6, 8).flip(1) / 8
    chosen = evaluate_fp64(router(), [x]).eager[1].clone()
    match spoil:
        case "order":
            chosen[3] = chosen[3].flip(0)
        case "repeat":
            chosen[3, 1] = chosen[3, 0]
        case "range":
            chosen[3, 1] = 8
        case "negative":
            chosen[3, 1] = -1
        case "worse":
            chosen[3, 2] = 7
    (fault,) = evaluate_fp64(router(), [x], {1: chosen}).faults
    assert fault.output == 1
    assert fault.wrong.any(1).tolist() == [False, False, False, True, False, False]


def sort_region(stable, dtype="float32"):
    pair = (spec(2, 5, dtype=dtype), spec(2, 5, dtype="int64"))
    sort = node("aten.sort.stable", I0, specs=pair, stable=stable, dim=-1, descending=False)
    return Region((spec(2, 5, dtype=dtype),), (sort, node("getitem", N0, 1, specs=pair[1:])), ("n1",))


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_a_stable_sort_keeps_the_order_of_ties_and_any_other_need_not(dtype):
    x = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0]]).to(getattr(torch, dtype))
    first = torch.tensor([[1, 3, 0, 2, 4], [0, 1, 2, 3, 4]])
    other = torch.tensor([[1, 3, 2, 0, 4], [0, 1, 2, 3, 4]])
    assert evaluate_fp64(sort_region(True, dtype), [x], {0: first}).faults == ()
    (fault,) = evaluate_fp64(sort_region(True, dtype), [x], {0: other}).faults
    assert fault.wrong.nonzero().tolist() == [[0, 3]]
    assert evaluate_fp64(sort_region(False, dtype), [x], {0: other}).faults == ()


@pytest.mark.parametrize("keepdim", [False, True])
def test_arg_max_takes_the_first_of_ties_and_the_first_nan(keepdim):
    shape = (3, 1) if keepdim else (3,)
    best = node("aten.argmax.default", I0, -1, keepdim, specs=(spec(*shape, dtype="int64"),))
    region = Region((spec(3, 4),), (best,), ("n0",))
    x = torch.tensor([[1.0, 3.0, 3.0, 0.0], [0.0, float("nan"), 9.0, float("nan")], [2.0, 2.0, 2.0, 2.0]])
    right = torch.tensor([1, 1, 0]).reshape(shape)
    assert torch.equal(evaluate_fp64(region, [x]).eager[0], right)
    assert evaluate_fp64(region, [x], {0: right}).faults == ()
    for row, index in ((0, 2), (1, 3), (1, 2), (2, 1)):
        wrong = right.clone()
        wrong[row] = index
        (fault,) = evaluate_fp64(region, [x], {0: wrong}).faults
        assert fault.wrong.reshape(-1).nonzero().tolist() == [[row]]


def test_indices_are_recognised_behind_a_cast_and_a_reshape():
    best = node("aten.argmin.default", I0, 1, specs=(spec(4, dtype="int64"),))
    narrow = node("prims.convert_element_type.default", N0, {"dtype": "int32"}, specs=(spec(4, dtype="int32"),))
    folded = node("aten.reshape.default", N1, [2, 2], specs=(spec(2, 2, dtype="int32"),))
    region = Region((spec(4, 3),), (best, narrow, folded), ("n2",))
    x = torch.tensor([[2.0, 1.0, 3.0]] * 4)
    assert evaluate_fp64(region, [x], {0: torch.ones(2, 2, dtype=torch.int32)}).faults == ()
    (fault,) = evaluate_fp64(region, [x], {0: torch.tensor([[1, 1], [2, 1]], dtype=torch.int32)}).faults
    assert fault.wrong.nonzero().tolist() == [[1, 0]]


def test_values_follow_the_candidates_choice():
    x = torch.tensor([[1.0, 1.0 + 1e-7, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]] * 6)
    chosen = torch.tensor([[1, 0, 2]] * 6)
    reference = evaluate_fp64(router(), [x], {1: chosen})
    scores = x.double().softmax(-1)
    assert torch.equal(reference.exact[0], scores.gather(1, chosen))
