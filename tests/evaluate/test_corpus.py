"""The judge is not fooled: every cheat is caught by the check that is there for it, and no honest kernel is refused."""

from __future__ import annotations

import pytest

from kevolve_inductor.evaluate.build import gate
from kevolve_inductor.evaluate.evaluation import Crashed, Evaluation, Mismatch, Refused
from kevolve_inductor.exc import CompilerMissingError
from kevolve_inductor.platforms.cpp_compiler import find_compiler
from kevolve_inductor.platforms.cpu import CpuPlatform
from tests.evaluate.corpus import GROUNDS, Cheat, Honest, UntimedJudge, build_all, cheats, honest, triton_cheats

CHEATS = sorted(cheats(), key=lambda cheat: cheat.ground)
HONEST = sorted(honest(), key=lambda kernel: kernel.ground)
TRITON = list(triton_cheats())


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    try:
        find_compiler()
    except CompilerMissingError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("corpus")
    build_all([(GROUNDS[entry.ground].region, entry.kernel) for entry in (*CHEATS, *HONEST)], folder)
    judge = UntimedJudge(folder)
    yield judge
    judge.close()


def judged(judge: UntimedJudge, entry: Cheat | Honest) -> Evaluation | None:
    if "_mm512" in entry.kernel.source and "avx512f" not in CpuPlatform().target().features:
        pytest.skip("a processor without AVX-512")
    ground = GROUNDS[entry.ground]
    return judge.judge(ground.region, ground.workload, entry.kernel)


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: f"{cheat.ground}-{cheat.name}")
def test_a_cheat_is_caught_by_the_check_that_is_there_for_it(cheat, judge):
    match judged(judge, cheat):
        case Mismatch(check=check, pattern=pattern):
            assert check in cheat.check.split(" or ")
            assert pattern in cheat.detail.split(" or ")
        case Refused(check="gate", message=message):
            assert cheat.check == "gate"
            assert cheat.detail in message
        case Crashed(signal=signal):
            assert (cheat.check, cheat.detail) == ("signal", str(signal))
        case outcome:
            pytest.fail(f"{cheat.name}: {outcome}")


@pytest.mark.parametrize("kernel", HONEST, ids=lambda kernel: f"{kernel.ground}-{kernel.name}")
def test_an_honest_kernel_is_not_refused(kernel, judge):
    assert judged(judge, kernel) is None


@pytest.mark.parametrize(("kernel", "named"), [entry[1:] for entry in TRITON], ids=[entry[0] for entry in TRITON])
def test_a_triton_cheat_is_refused_by_its_text(kernel, named):
    refused = gate(kernel)
    assert refused is not None and named in refused.message


def test_the_corpus_is_what_it_claims_to_be():
    assert len({cheat.kernel.digest for cheat in CHEATS}) == len(CHEATS) >= 45
    assert len({cheat.ground for cheat in CHEATS}) >= 5
    assert len({kernel.kernel.digest for kernel in HONEST}) == len(HONEST) >= 60
    assert {kernel.ground for kernel in HONEST} == set(GROUNDS)
    assert len({kernel.digest for _, kernel, _ in TRITON}) == len(TRITON)
