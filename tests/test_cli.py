"""The command line: what it prints, what it returns, and that bad input says what to do."""

from __future__ import annotations

import json
import os
import textwrap
from typing import get_args

import pytest

from kevolve_inductor import report
from kevolve_inductor.cache.entry import TrialRow
from kevolve_inductor.cache.store import Store
from kevolve_inductor.cli import main
from kevolve_inductor.evaluate.evaluation import BuildFailed, Diagnosis, Passed, to_json
from kevolve_inductor.report.doctor import format_findings
from kevolve_inductor.settings import IsolationLevel
from kevolve_inductor.testing.stores import example_entry, example_kernel
from tests.packed import packed, put


@pytest.fixture
def filled(store):
    kernel = example_kernel()
    evidence = Passed(
        20.0, {"eager": 100.0, "inductor": 80.0}, 4.0, 3.9, 0.0, Diagnosis("memory", "a test", 1e9, 1e9, 0.5), 0.1
    )
    entry = example_entry(kernel=kernel, evaluation=to_json(evidence))
    Store.open(store).put(entry, kernel)
    return entry


def test_ls_lists_every_region(filled, capsys):
    assert main(["cache", "ls"]) == 0
    assert filled.key[:12] in capsys.readouterr().out
    assert main(["cache", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["key"] == filled.key


def test_show_prints_the_source_by_a_keys_beginning(filled, capsys):
    assert main(["cache", "show", filled.key[:8]]) == 0
    assert example_kernel().source.strip() in capsys.readouterr().out


def test_why_explains_a_verdict_and_the_difference_of_two_keys(filled, capsys):
    assert main(["cache", "why", filled.key]) == 0
    text = capsys.readouterr().out
    assert "verdict  kernel" in text
    assert "because  Limited by memory traffic; 1 GB/s" in text and "(From: a test.)" in text
    assert main(["cache", "why", filled.key, filled.key]) == 0
    assert capsys.readouterr().out.strip() == "equal"


def test_why_counts_the_trials_and_explains_the_failures(filled, store, capsys):
    failed = to_json(BuildFailed("compile", "expected ';'", 7))
    rows = [TrialRow(k, (), {}, "build failed", 0.0, evaluation=failed) for k in range(3)]
    Store.open(store).append_trials(filled.key, [*rows, TrialRow(3, (), {}, "passed", 4.0)])
    assert main(["cache", "why", filled.key]) == 0
    text = capsys.readouterr().out
    assert "3 build failed, e.g. Does not compile: compile in line 7: expected ';'" in text
    assert text.endswith("   1 passed\n")


def test_unknown_key_says_how_to_find_one(store, capsys):
    assert main(["cache", "show", "abc"]) == 2
    assert "kevolve cache ls" in capsys.readouterr().err


def test_verify_finds_a_flipped_byte(filled, store, capsys):
    assert main(["cache", "verify"]) == 0
    (path,) = (store / "objects").glob("*/*.json")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(["cache", "verify"]) == 1
    assert str(path) in capsys.readouterr().out


def test_doctor_reports_platforms_and_why_not(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["platforms"]["cpu"]["available"]
    assert findings["platforms"]["cpu"]["ceilings"]["bytes_per_s"] > 1e9
    assert all("reason" in found for found in findings["platforms"].values() if not found["available"])
    isolation = findings["platforms"]["cpu"]["isolation"]
    assert isolation["level"] in get_args(IsolationLevel)
    assert isolation["level"] == "confined" or isolation["missing"]
    assert f"isolation of workers: {isolation['level']}" in format_findings(findings)


FACTORY = """
    import torch

    def make():
        return (lambda x: torch.topk(torch.softmax(x, -1), 2), (torch.randn(4000, 32),))

    def wrong():
        return 3
"""


def test_warm_searches_once_and_resumes(tmp_path, store, capsys):
    path = tmp_path / "model_to_warm.py"
    path.write_text(textwrap.dedent(FACTORY))
    command = ["warm", f"{path}:make", "--search", "quick", "--budget-s", "5", "--json"]
    report.reset()
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["searched"] == len(first["regions"]) == 1
    report.reset()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["searched"] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_colon", "MODULE_OR_FILE:FACTORY"),
        ("no_such_module_here:make", "no module"),
        ("{path}:absent", "it has: make, wrong"),
        ("{path}:wrong", "must return"),
    ],
)
def test_bad_factories_get_a_clear_error(name, message, tmp_path, capsys):
    path = tmp_path / "factories.py"
    path.write_text(textwrap.dedent(FACTORY).replace("import torch", ""))
    assert main(["warm", name.format(path=path)]) == 2
    assert message in capsys.readouterr().err


def listed(capsys, key):
    assert main(["cache", "ls", "--json"]) == 0
    return next(row for row in json.loads(capsys.readouterr().out) if row["key"] == key)


def test_export_and_import_carry_kernels_that_do_not_run_until_they_are_trusted(store, tmp_path, capsys, monkeypatch):
    one = put(Store.open(store), packed())
    file = tmp_path / "kernels.kevolve"
    assert main(["cache", "export", str(file)]) == 0
    assert f"{file}: 1 kernels" in capsys.readouterr().out
    other = tmp_path / "other"
    monkeypatch.setenv("KEVOLVE_STORE", str(other))
    assert main(["cache", "import", str(file), "--source", "team"]) == 0
    assert "KEVOLVE_TRUST=local,team" in capsys.readouterr().out
    row = listed(capsys, one.entry.key)
    assert (row["source"], row["trusted"]) == ("team", False)
    assert main(["cache", "show", one.entry.key[:8]]) == 0
    text = capsys.readouterr().out
    assert (
        "source   team" in text and "not trusted: to run it, add 'team'" in text and one.kernel.source.strip() in text
    )
    assert main(["cache", "ls"]) == 0 and "(from team, not trusted)" in capsys.readouterr().out
    assert main(["cache", "export", str(tmp_path / "none")]) == 1 and "no kernels to export" in capsys.readouterr().out
    monkeypatch.setenv("KEVOLVE_TRUST", "local,team")
    assert listed(capsys, one.entry.key)["trusted"]
    assert main(["cache", "export", str(tmp_path / "again"), one.entry.key[:8], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exported"] == [one.entry.key]
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_what_is_withheld_is_named_and_the_exit_code_says_so(store, tmp_path, capsys):
    unknown = packed(sanitizers=False)
    Store.open(store).put(unknown.entry, unknown.kernel)
    put(Store.open(store), packed(1))
    assert main(["cache", "export", str(tmp_path / "file")]) == 1
    text = capsys.readouterr().out
    assert "1 kernels" in text and f"not exported: {unknown.entry.key[:12]}" in text and "search it again" in text


def test_a_damaged_file_is_an_error_in_one_line(store, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"nothing of the kind")
    assert main(["cache", "import", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kevolve: nothing was imported: ") and error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["cache", "import", str(tmp_path / "file"), "--source", "local"])
    assert "cannot be called" in capsys.readouterr().err


def test_gc_says_what_it_would_remove_and_then_removes_it(filled, store, capsys):
    target, stray = Store.open(store), TrialRow(0, (), {}, "passed", 1.0)
    target.append_trials("a" * 64, [stray])
    (path,) = (store / "trials" / "aa").iterdir()
    os.utime(path, (0, 0))
    assert main(["cache", "gc", "--dry-run"]) == 0
    assert f"{path.relative_to(store)}: no entry needs it" in capsys.readouterr().out and path.exists()
    assert main(["cache", "gc", "--json"]) == 0
    assert [file["name"] for file in json.loads(capsys.readouterr().out)["files"]] == [str(path.relative_to(store))]
    assert not path.exists() and target.get(filled.key) is not None
    with pytest.raises(SystemExit):
        main(["cache", "gc", "--older-than", "-1"])
