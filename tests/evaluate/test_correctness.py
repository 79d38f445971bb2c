from __future__ import annotations

import pytest
import torch

from kevolve_inductor.evaluate.closeness import allowed_error, compare
from kevolve_inductor.evaluate.correctness import Agreed, Judge, NoReference
from kevolve_inductor.evaluate.evaluation import Mismatch
from kevolve_inductor.evaluate.inputs import generate
from kevolve_inductor.graph.reference import evaluate_with_other_means
from kevolve_inductor.graph.region import InputRange, Region, RegionNode, TensorSpec, Workload
from kevolve_inductor.graph.rounding import RoundingSpread
from kevolve_inductor.testing.evaluators import row_sum_region

CPU = torch.device("cpu")
INF, NAN = float("inf"), float("nan")


def spec(*shape, dtype="float32"):
    return TensorSpec(shape, torch.empty(shape, device="meta").stride(), dtype, "cpu")


def judge(region, *ranges):
    workload = Workload((), ranges or (None,) * len(region.inputs))
    judged = Judge(region, workload, 0, CPU)
    return judged, lambda distribution: generate(region, workload, distribution, 0, CPU)


def row_sums():
    judged, inputs = judge(row_sum_region())
    return judged, inputs("normal")[0].sum(1)


def test_a_sum_in_another_order_agrees():
    judged, _ = row_sums()
    x = generate(row_sum_region(), Workload((), (None,)), "normal", 0, CPU)[0]
    outcome = judged.judge("normal", [x.flip(1).cumsum(1)[:, -1]])
    assert isinstance(outcome, Agreed)
    assert 0 < outcome.max_error < 1e-4


@pytest.mark.parametrize(
    ("spoil", "pattern", "wrong"),
    [
        (slice(None), "everything", 500),
        (slice(490, None), "tail", 10),
        (slice(0, None, 7), "every n-th", 72),
        ([3, 10, 77, 130], "scattered", 4),
    ],
)
def test_patterns_of_wrong_sums(spoil, pattern, wrong):
    judged, out = row_sums()
    out[spoil] += 1.0
    outcome = judged.judge("normal", [out])
    assert isinstance(outcome, Mismatch)
    assert (outcome.check, outcome.pattern, outcome.wrong_elements) == ("fp64 reference", pattern, wrong)
    assert outcome.worst_error == pytest.approx(1.0, abs=1e-3)
    assert out[outcome.worst_index] is not None
    assert "off by +1" in outcome.likely_cause


def product_region(dtype="float32"):
    node = RegionNode("aten.mul.Tensor", ({"node": "i0"}, 3.1), {}, (spec(8, 40, dtype=dtype),))
    return Region((spec(8, 40, dtype=dtype),), (node,), ("n0",))


def test_one_wrong_row_and_row_ends_are_told_apart():
    judged, inputs = judge(product_region())
    right = inputs("normal")[0] * 3.1
    row, ends = right.clone(), right.clone()
    row[3] += 1
    ends[:, 38:] += 1
    wrong_row, wrong_ends = judged.judge("normal", [row]), judged.judge("normal", [ends])
    assert (wrong_row.pattern, wrong_row.place) == ("one row", "row 3 of 8")
    assert (wrong_ends.pattern, wrong_ends.place) == ("tail", "columns from 38 on, of 40")


def test_the_values_tell_the_likely_cause_and_the_pattern_where_they_do_not():
    judged, inputs = judge(product_region())
    right = inputs("normal")[0] * 3.1
    assert "1/40" in judged.judge("normal", [right / 40]).likely_cause
    noise = torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
    assert "formula" in judged.judge("normal", [right + noise]).likely_cause


def test_nan_and_infinity_stand_where_eager_has_them():
    judged, inputs = judge(product_region())
    right = inputs("special")[0] * 3.1
    assert isinstance(judged.judge("special", [right.clone()]), Agreed)
    lost, added, turned = right.clone(), right.clone(), right.clone()
    lost[right.isnan()] = 0.0
    added[0, 0] = float("nan")
    turned[right.isinf()] *= -1
    assert judged.judge("special", [lost]).pattern == "nan placement"
    wrong = judged.judge("special", [added])
    assert (wrong.pattern, wrong.worst_index) == ("nan placement", (0, 0))
    assert "uninitialised" in wrong.likely_cause
    assert isinstance(judged.judge("special", [turned]), Mismatch)


def test_low_precision_may_round_but_not_drift():
    judged, inputs = judge(product_region("bfloat16"))
    right = inputs("normal")[0] * 3.1
    assert isinstance(judged.judge("normal", [right]), Agreed)
    assert isinstance(judged.judge("normal", [(right.float() * 1.05).bfloat16()]), Mismatch)


def test_moved_values_must_keep_their_bits():
    moved = RegionNode("aten.permute.default", ({"node": "i0"}, [1, 0]), {}, (spec(40, 8),))
    judged, inputs = judge(Region((spec(8, 40),), (moved,), ("n0",)))
    right = inputs("normal")[0].T.contiguous()
    assert isinstance(judged.judge("normal", [right.clone()]), Agreed)
    right[5, 5] = torch.nextafter(right[5, 5], torch.tensor(9.0))
    outcome = judged.judge("normal", [right])
    assert (outcome.check, outcome.wrong_elements, outcome.worst_index) == ("equal bits", 1, (5, 5))


def test_small_outputs_are_not_hidden_under_an_absolute_tolerance():
    exact = torch.full((4, 4), 1e-6, dtype=torch.float64)
    assert float(allowed_error(exact, exact.float()).max()) < 1e-9


def test_integers_are_exact_and_truth_values_are_zero_or_one():
    total = RegionNode("aten.mul.Tensor", ({"node": "i0"}, 3), {}, (spec(9, dtype="int64"),))
    judged, inputs = judge(Region((spec(9, dtype="int64"),), (total,), ("n0",)))
    out = inputs("normal")[0] * 3
    assert isinstance(judged.judge("normal", [out.clone()]), Agreed)
    out[8] += 1
    assert judged.judge("normal", [out]).wrong_elements == 1
    positive = RegionNode("aten.gt.Scalar", ({"node": "i0"}, 0), {}, (spec(9, dtype="bool"),))
    judged, inputs = judge(Region((spec(9, dtype="int64"),), (positive,), ("n0",)))
    truth = inputs("normal")[0] > 0
    assert isinstance(judged.judge("normal", [truth]), Agreed)
    assert isinstance(judged.judge("normal", [(truth.to(torch.uint8) * 255).view(torch.bool)]), Mismatch)


def gather_region():
    taken = RegionNode("aten.index_select.default", ({"node": "i0"}, 0, {"node": "i1"}), {}, (spec(20, 4),))
    return Region((spec(10, 4), spec(20, dtype="int64")), (taken,), ("n0",))


def test_where_eager_raises_for_an_index_a_kernel_must():
    judged, inputs = judge(gather_region(), None, InputRange(0, 9))
    assert judged.judge("beyond", None) == Agreed(0.0)
    clamped = inputs("normal")[0][:1].expand(20, 4)
    outcome = judged.judge("beyond", [clamped])
    assert isinstance(outcome, Mismatch) and outcome.check == "index out of range"
    assert isinstance(judged.judge("normal", None), Mismatch)


def test_without_valid_inputs_there_is_no_verdict():
    judged, _ = judge(gather_region(), None, None)
    assert isinstance(judged.judge("normal", [torch.zeros(20, 4)]), NoReference)


def cancelling_region(rows, columns, dtype="float32"):
    """``(sum x)^2 - sum x^2`` along the middle, as a factorization machine has it."""
    x = {"node": "i0"}
    per_row, full = spec(rows, columns, dtype=dtype), spec(rows, 39, columns, dtype=dtype)
    nodes = (
        RegionNode("aten.sum.dim_IntList", (x, [1]), {}, (per_row,)),
        RegionNode("aten.mul.Tensor", ({"node": "n0"}, {"node": "n0"}), {}, (per_row,)),
        RegionNode("aten.mul.Tensor", (x, x), {}, (full,)),
        RegionNode("aten.sum.dim_IntList", ({"node": "n2"}, [1]), {}, (per_row,)),
        RegionNode("aten.sub.Tensor", ({"node": "n1"}, {"node": "n3"}), {}, (per_row,)),
    )
    return Region((full,), nodes, ("n4",))


def machine(x, addends=torch.float32):
    total, squares = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    for position in range(x.shape[1]):
        term = x[:, position].to(addends).float()
        total, squares = total + term, squares + term * term
    return total * total - squares


@pytest.mark.parametrize("distribution", ["normal", "large", "uniform", "sorted"])
def test_cancellation_forgives_another_order_and_nothing_else(distribution):
    """Where eager was lucky in a small difference of large values, a sum one after another is further off."""
    judged, inputs = judge(cancelling_region(20000, 16))
    x = inputs(distribution)[0]
    assert isinstance(judged.judge(distribution, [machine(x)]), Agreed)
    assert isinstance(judged.judge(distribution, [machine(x, torch.bfloat16)]), Mismatch)
    assert isinstance(judged.judge(distribution, [machine(x, torch.float16)]), Mismatch)
    spoilt = machine(x)
    spoilt[7, 3] -= x[7, 0, 3] ** 2
    assert isinstance(judged.judge(distribution, [spoilt]), Mismatch)


def test_products_in_lower_precision_are_no_matter_of_rounding():
    node = RegionNode("aten.mm.default", ({"node": "i0"}, {"node": "i1"}), {}, (spec(96, 64),))
    judged, inputs = judge(Region((spec(96, 200), spec(200, 64)), (node,), ("n0",)))
    left, right = inputs("normal")
    assert isinstance(judged.judge("normal", [left @ right]), Agreed)
    # As tf32 has it: ten bits of the operands.
    short = [(t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (left, right)]
    assert isinstance(judged.judge("normal", [short[0] @ short[1]]), Mismatch)


def test_overflow_beside_the_largest_value_is_rounding():
    """The exact product is finite in half precision; rounded once more on the way it is not."""
    node = RegionNode("aten.mul.Tensor", ({"node": "i0"}, 1000.0), {}, (spec(4, dtype="float16"),))
    judged, _ = judge(Region((spec(4, dtype="float16"),), (node,), ("n0",)))
    largest = torch.tensor(65504.0, dtype=torch.float64)
    exact = torch.stack([largest, largest, -largest, largest / 2])
    eager = exact.to(torch.float16)
    inf = float("inf")

    def wrong(*values):
        return compare(torch.tensor(values, dtype=torch.float16), exact, eager, False).wrong.tolist()

    assert wrong(inf, 65504.0, -inf, 32752.0) == [False] * 4
    assert wrong(-inf, 65504.0, inf, inf) == [True, False, True, True]


def machine_region(full, per_row):
    """The square of a row's sum less the sum of its squares, as in factorization machines."""
    nodes = (
        RegionNode("aten.sum.dim_IntList", ({"node": "i0"}, [1]), {}, (per_row,)),
        RegionNode("aten.mul.Tensor", ({"node": "n0"}, {"node": "n0"}), {}, (per_row,)),
        RegionNode("aten.mul.Tensor", ({"node": "i0"}, {"node": "i0"}), {}, (full,)),
        RegionNode("aten.sum.dim_IntList", ({"node": "n2"}, [1]), {}, (per_row,)),
        RegionNode("aten.sub.Tensor", ({"node": "n1"}, {"node": "n3"}), {}, (per_row,)),
    )
    return Region((full,), nodes, ("n4",))


def test_where_eager_overflows_a_kernel_may_in_another_way_but_may_not_be_wrong():
    judged, inputs = judge(machine_region(spec(64, 29, 20, dtype="float16"), spec(64, 20, dtype="float16")))
    x = inputs("large")[0]
    total = x.float().sum(1).half()
    squares = (x * x).float().sum(1)
    unrounded, rounded = (total * total).float() - squares, (total * total) - squares.half()
    exact = x.double().sum(1).square() - x.double().square().sum(1)
    lost = unrounded.isinf() & rounded.isnan() & (exact.abs() < 60_000)
    assert lost.any()
    assert isinstance(judged.judge("large", [unrounded.half()]), Agreed)
    wrong = unrounded.half()
    wrong[lost] = 0.0
    assert isinstance(judged.judge("large", [wrong]), Mismatch)
    normal = inputs("normal")[0]
    spoilt = (normal.float().sum(1).square() - normal.float().square().sum(1)).half()
    assert isinstance(judged.judge("normal", [spoilt]), Agreed)
    spoilt[3, 4] = float("inf")
    assert isinstance(judged.judge("normal", [spoilt]), Mismatch)


def test_an_overflow_on_the_way_is_rounding_only_beside_the_largest_value():
    nodes = (
        RegionNode("aten.mul.Tensor", ({"node": "i0"}, {"node": "i1"}), {}, (spec(4, dtype="float16"),)),
        RegionNode("aten.mul.Tensor", ({"node": "n0"}, 0.125), {}, (spec(4, dtype="float16"),)),
    )
    region = Region((spec(4, dtype="float16"), spec(4, dtype="float16")), nodes, ("n1",))
    inputs = [torch.tensor([255.75, 240.0, 1.0, 2.0]).half(), torch.tensor([256.0, 256.0, 1.0, 3.0]).half()]
    assert RoundingSpread(region, inputs, 0).may_overflow(0).tolist() == [True, False, False, False]


def test_a_gradient_that_was_not_asked_for_leaves_rounding_to_be_judged():
    """The operator gives three results, of which the last is nothing; the region has two."""
    maps, weight = spec(2, 4, 6, 7), spec(4, 1, 3, 3)
    arguments = (
        {"node": "i0"}, {"node": "i1"}, {"node": "i2"}, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 4, [True, True, False]
    )  # fmt: skip
    backward = RegionNode("aten.convolution_backward.default", arguments, {}, (maps, weight))
    taken = [RegionNode("getitem", ({"node": "n0"}, k), {}, (one,)) for k, one in enumerate((maps, weight))]
    region = Region((maps, maps, weight), (backward, *taken), ("n1", "n2"))
    inputs = generate(region, Workload((), (None,) * 3), "large", 0, CPU)
    spread = RoundingSpread(region, inputs, 0)
    spread.draw(4)
    assert all((spread.deviation(k) > 0).all() and not spread.may_overflow(k).any() for k in (0, 1))


def layer_norm_region(rows, columns):
    """Over rows that stand in memory column by column, with the mean and the deviation that its gradient needs."""
    x, per_row = TensorSpec((rows, columns), (1, rows), "float32", "cpu"), spec(rows, 1)
    nodes = (
        RegionNode(
            "aten.var_mean.correction", ({"node": "i0"}, [1]), {"correction": 0, "keepdim": True}, (per_row,) * 2
        ),
        RegionNode("getitem", ({"node": "n0"}, 0), {}, (per_row,)),
        RegionNode("getitem", ({"node": "n0"}, 1), {}, (per_row,)),
        RegionNode("aten.add.Tensor", ({"node": "n1"}, 1e-5), {}, (per_row,)),
        RegionNode("aten.rsqrt.default", ({"node": "n3"},), {}, (per_row,)),
        RegionNode("aten.sub.Tensor", ({"node": "i0"}, {"node": "n2"}), {}, (x,)),
        RegionNode("aten.mul.Tensor", ({"node": "n5"}, {"node": "n4"}), {}, (x,)),
    )
    return Region((x,), nodes, ("n2", "n4", "n6"))


def layer_norm(x, mean):
    rstd = ((x - mean).square().mean(1, keepdim=True) + 1e-5).rsqrt()
    return [mean, rstd, (x - mean) * rstd]


def one_signed(x):
    """Rows with infinities of one sign and no NaN."""
    return x.masked_fill(x.isfinite(), 0.0).sum(1).isinf()


def test_a_mean_of_infinities_is_infinite_or_lost_as_the_order_has_it():
    """Eager's running mean is infinite where the infinity comes last, else NaN; a sum is infinite, joined parts are NaN."""
    judged, inputs = judge(layer_norm_region(4000, 5))
    x = inputs("special")[0]
    eager = torch.var_mean(x, 1)[1]
    assert eager[one_signed(x)].isnan().any() and eager[one_signed(x)].isinf().any()
    summed = x.sum(1, keepdim=True) / x.shape[1]
    joined = torch.where(summed.isfinite(), summed, NAN)
    for mean in (summed, joined):
        assert isinstance(judged.judge("special", layer_norm(x, mean)), Agreed)


def spoilt_means(x):
    """By what is wrong, the means and the rows that have such a one."""
    mean, infinite, finite = x.sum(1, keepdim=True) / x.shape[1], one_signed(x), x.isfinite().all(1)
    return {
        "infinity dropped": (x.nan_to_num(0.0, 0.0, 0.0).mean(1, keepdim=True), infinite),
        "zero": (torch.zeros_like(mean), infinite),
        "other sign": (-mean, infinite),
        "nan of numbers": (torch.full_like(mean, NAN), finite),
        "infinity of numbers": (torch.full_like(mean, INF), finite),
        "infinity for nan": (torch.full_like(mean, INF), ~finite & ~infinite),
    }


@pytest.mark.parametrize("wrong", spoilt_means(torch.zeros(1, 1)))
def test_a_mean_of_infinities_is_nothing_else(wrong):
    judged, inputs = judge(layer_norm_region(4000, 5))
    x = inputs("special")[0]
    value, rows = spoilt_means(x)[wrong]
    assert rows.any()
    for row in rows.nonzero()[:40].flatten().tolist():
        outputs = layer_norm(x, x.sum(1, keepdim=True) / x.shape[1])
        outputs[0][row] = value[row]
        outcome = judged.judge("special", outputs)
        assert isinstance(outcome, Mismatch)
        assert (outcome.wrong_elements, outcome.worst_index) == (1, (row, 0))


def test_a_layer_norm_of_infinities_is_not_a_number():
    judged, inputs = judge(layer_norm_region(4000, 5))
    x = inputs("special")[0]
    for output in (1, 2):
        for value in (0.0, INF):
            outputs = layer_norm(x, x.sum(1, keepdim=True) / x.shape[1])
            outputs[output][one_signed(x)] = value
            assert isinstance(judged.judge("special", outputs), Mismatch)


@pytest.mark.parametrize("target", ["aten.sum.dim_IntList", "aten.mean.dim"])
def test_a_sum_of_infinities_is_infinite_in_any_order(target):
    x = TensorSpec((4000, 5), (1, 4000), "float32", "cpu")
    judged, inputs = judge(Region((x,), (RegionNode(target, ({"node": "i0"}, [1]), {}, (spec(4000),)),), ("n0",)))
    right = inputs("special")[0].sum(1) / (5 if "mean" in target else 1)
    assert isinstance(judged.judge("special", [right]), Agreed)
    lost = right.masked_fill(right.isinf(), NAN)
    assert judged.judge("special", [lost]).pattern == "nan placement"


def test_what_follows_from_a_mean_follows_from_either():
    """Of one row, a negative infinity's: what is made of its mean is an infinity of the other sign, or NaN."""
    per_row, full = spec(1), spec(1, 4)
    nodes = (
        RegionNode("aten.var_mean.correction", ({"node": "i0"}, [1]), {}, (per_row, per_row)),
        RegionNode("getitem", ({"node": "n0"}, 1), {}, (per_row,)),
        RegionNode("aten.mul.Tensor", ({"node": "n1"}, -2.0), {}, (per_row,)),
    )
    region = Region((full,), nodes, ("n2",))
    for row in ([-INF, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, -INF], [-INF, 1.0, -INF, 2.0]):
        assert others(region, row) == [INF, "nan"]
    for row in ([INF, 1.0, 2.0, -INF], [NAN, INF, 1.0, 2.0]):
        assert others(region, row) == ["nan", "nan"]
    assert others(region, [1.0, 2.0, 3.0, 4.0]) == [-5.0, -5.0]


def others(region, row):
    found = evaluate_with_other_means(region, [torch.tensor([row])])
    return ["nan" if value.isnan() else value.item() for (value,) in found]


def test_a_row_of_one_number_is_its_own_mean():
    per_row = spec(3)
    nodes = (
        RegionNode("aten.var_mean.correction", ({"node": "i0"}, [1]), {}, (per_row, per_row)),
        RegionNode("getitem", ({"node": "n0"}, 1), {}, (per_row,)),
    )
    x = torch.tensor([[INF], [1.0], [-INF]])
    found = evaluate_with_other_means(Region((spec(3, 1),), nodes, ("n1",)), [x])
    assert [value.tolist() for (value,) in found] == [[INF, 1.0, -INF]] * 2


@pytest.mark.parametrize(("exact", "eager"), [(INF, NAN), (NAN, INF), (INF, -INF), (NAN, NAN), (INF, INF)])
def test_nothing_finite_stands_where_neither_reference_is(exact, eager):
    output, wanted, own = torch.tensor([0.5]), torch.tensor([exact]).double(), torch.tensor([eager])
    assert compare(output, wanted, own, False).wrong.all()
    assert compare(output, wanted, own, False, [torch.tensor([0.5]).double()]).wrong.all()


def long_sums():
    """Twenty thousand terms, most of them onto one row of eight."""
    rows, terms = spec(8, 48), spec(20_000, 48)
    node = RegionNode("aten.index_add.default", ({"node": "i0"}, 0, {"node": "i1"}, {"node": "i2"}), {}, (rows,))
    region = Region((rows, spec(20_000, dtype="int64"), terms), (node,), ("n0",))
    return judge(region, None, InputRange(0, 7), None)


def test_an_element_of_a_long_sum_may_be_as_far_off_as_eager_may():
    judged, inputs = long_sums()
    into, index, terms = inputs("large")
    eager = into.index_add(0, index, terms)
    exact = into.double().index_add(0, index, terms.double())
    row = int(index.bincount().argmax())
    usual = (eager[row] - exact[row]).square().mean().sqrt()
    for times, verdict in ((6.0, Agreed), (30.0, Mismatch)):
        output = eager.clone()
        output[row, 5] = exact[row, 5] + times * usual
        assert isinstance(judged.judge("large", [output]), verdict), times
    kept = index.clone()
    kept[(index == row).nonzero()[100]] = (row + 1) % 8
    moved = into.index_add(0, kept, terms)
    assert isinstance(judged.judge("large", [moved]), Mismatch)


def one_after_another(x):
    total, squares = x[:, 0].clone(), x[:, 0].square()
    for k in range(1, x.shape[1]):
        total, squares = total + x[:, k], squares + x[:, k].square()
    return total * total - squares


def test_of_very_many_elements_a_few_may_be_further_off_but_none_may_lack_a_term():
    judged, inputs = judge(machine_region(spec(1000, 26, 128), spec(1000, 128)))
    x = inputs("large")[0]
    output = one_after_another(x)
    assert isinstance(judged.judge("large", [output]), Agreed)
    spread = judged._spread_of("large").deviation(0)
    exact = x.double().sum(1).square() - x.double().square().sum(1)
    eager = x.sum(1).square() - x.square().sum(1)
    strict = (allowed_error(exact, eager) < 9.0 * spread).view(-1).nonzero()[:, 0]
    for few, times, verdict in ((3, 14.0, Agreed), (3, 40.0, Mismatch), (300, 14.0, Mismatch)):
        spoilt = output.clone()
        at = strict[:few]
        spoilt.view(-1)[at] = (exact + times * spread).float().view(-1)[at]
        assert isinstance(judged.judge("large", [spoilt]), verdict), (few, times)
    lacking = x.clone()
    lacking[321, -1, 7] = 0.0
    output[321] = one_after_another(lacking)[321]
    assert isinstance(judged.judge("large", [output]), Mismatch)
