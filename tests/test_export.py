"""Export asks the sanitizers of whatever they have not been asked yet, and keeps back what they refuse."""

from __future__ import annotations

import pytest

from kevolve_inductor.cache.bundle import read_bundle
from kevolve_inductor.cache.gc import WORKLOADS
from kevolve_inductor.cache.store import Store
from kevolve_inductor.evaluate.evaluation import Refused, from_json
from kevolve_inductor.evaluate.null import NullEvaluator
from kevolve_inductor.evaluate.sanitizers.sanitizers import Sanitized
from kevolve_inductor.evaluate.sanitizers.tool import Clean, NotRun
from kevolve_inductor.exc import WorkerError
from kevolve_inductor.export import evaluators, export
from kevolve_inductor.testing.evaluators import ROW_SUM_SOURCE
from tests.packed import packed, put

RACE = Refused("thread sanitizer", "data race in line 7")


class Sanitizing(NullEvaluator):
    """Finds the same in every kernel."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.made, self.asked = answer, [], []

    def __call__(self, platform):
        self.made.append(platform)
        return self

    def sanitize(self, kernel):
        self.asked.append(kernel.digest)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.kevolve"


def test_what_was_sanitized_before_is_not_again(store, path):
    opened = Store.open(store)
    ones = [put(opened, packed(number)) for number in range(2)]
    judge = Sanitizing(RACE)
    done = export(opened, opened.entries(), path, judge)
    assert judge.made == [] and done.withheld == () and len(done.entries) == 2
    assert {one.entry.key for one in read_bundle(path)[0]} == {one.entry.key for one in ones}


def test_what_was_not_is_sanitized_once_and_the_record_kept(store, path):
    opened = Store.open(store)
    ones = [put(opened, packed(number, sanitizers=False)) for number in range(2)]
    judge = Sanitizing(Sanitized({"thread sanitizer": Clean(("normal",), 0.5), "memcheck": NotRun("not installed")}))
    for _ in range(2):
        export(opened, opened.entries(), path, judge)
    assert sorted(judge.asked) == sorted(one.kernel.digest for one in ones) and judge.made == ["cpu"]
    record = {"thread sanitizer": "clean on normal (0.5 s)", "memcheck": "not run: not installed"}
    for held in (read_bundle(path)[0][0].entry, opened.get(ones[0].entry.key)):
        assert from_json(held.evaluation).sanitizers == record


def test_what_a_sanitizer_refuses_is_named_kept_back_and_not_used_any_more(store, path):
    opened = Store.open(store)
    faulty, clean = put(opened, packed(0, sanitizers=False)), put(opened, packed(1))
    done = export(opened, opened.entries(), path, Sanitizing(RACE))
    (withheld,) = done.withheld
    assert withheld.entry.key == faulty.entry.key and withheld.faulty and "data race in line 7" in withheld.reason
    assert [one.entry.key for one in read_bundle(path)[0]] == [clean.entry.key]
    left = opened.get(faulty.entry.key)
    assert (left.verdict, left.kernel) == ("baseline", None) and from_json(left.evaluation) == RACE


def test_where_nothing_can_be_exported_no_file_is_written(store, path):
    opened = Store.open(store)
    put(opened, packed(sanitizers=False))
    failed = export(opened, opened.entries(), path, Sanitizing(WorkerError("no worker")))
    assert failed.sha256 is None and not path.exists()
    assert "no worker" in failed.withheld[0].reason and not failed.withheld[0].faulty
    assert opened.get(packed().entry.key).kernel is not None


def test_without_its_workload_an_unchecked_kernel_is_not_exported(store, path):
    opened = Store.open(store)
    one = packed(sanitizers=False)
    opened.put(one.entry, one.kernel)
    assert opened.recall(WORKLOADS, one.entry.key) is None
    (withheld,) = export(opened, opened.entries(), path, Sanitizing(RACE)).withheld
    assert "search it again" in withheld.reason and not withheld.faulty


@pytest.mark.parametrize(
    ("change", "reason"), [({"chip": "another"}, "made for another"), ({"platform": "hip"}, "not run: ")]
)
def test_where_its_chip_is_not_here_the_record_says_so(store, path, change, reason):
    opened, one = Store.open(store), packed(sanitizers=False)
    fields = {**one.entry.key_fields, "target": {**one.entry.key_fields["target"], **change}}
    moved = packed(sanitizers=False, key_fields=fields, key=keyed(fields))
    put(opened, moved)
    judge = Sanitizing(RACE)
    done = export(opened, opened.entries(), path, judge)
    assert judge.asked == [] and done.withheld == ()
    assert reason in from_json(done.entries[0].evaluation).sanitizers["sanitizers"]


def keyed(fields):
    from kevolve_inductor.kernel import digest_of

    return digest_of(fields)


def test_a_kernel_that_reads_beyond_its_input_does_not_leave_the_machine(store, path):
    """With the real sanitizers."""
    opened = Store.open(store)
    beyond = "    if (row == 499) { volatile float next = in[row * 100 + 100]; }\n    float sum = 0;"
    wrong = put(opened, packed(0, ROW_SUM_SOURCE.replace("    float sum = 0;", beyond), sanitizers=False))
    (withheld,) = export(opened, opened.entries(), path, evaluators(opened)).withheld
    assert withheld.faulty and "address sanitizer" in withheld.reason and "input 0" in withheld.reason
    assert not path.exists() and opened.get(wrong.entry.key).kernel is None
