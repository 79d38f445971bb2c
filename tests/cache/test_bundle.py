"""What a bundle keeps, and that nothing of a damaged, forged or dangerous one is imported."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kevolve_inductor.cache import Store
from kevolve_inductor.cache.bundle import MOST_BYTES, Packed, import_bundle, pack, read_bundle, write_bundle
from kevolve_inductor.cache.folder import canonical, sha256
from kevolve_inductor.exc import BundleError, SettingsError, StoreError
from kevolve_inductor.testing.evaluators import ROW_SUM_SOURCE
from kevolve_inductor.testing.stores import example_kernel
from tests.packed import entry_for, packed, put

Members = dict[str, bytes]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kernels.kevolve"


def members_of(data: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def tar_of(members: Members, resealed: bool = True, extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """A bundle of ``members``; ``resealed``: by somebody who also wrote a fitting manifest."""
    if resealed:
        digests = {name: sha256(content) for name, content in members.items() if name != "manifest.json"}
        members = {"manifest.json": canonical({"bundle": 1, "members": digests}).encode(), **members_without(members)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member)
    return buffer.getvalue()


def members_without(members: Members) -> Members:
    return {name: content for name, content in members.items() if name != "manifest.json"}


def test_what_goes_in_comes_out_marked_with_its_source(path, store):
    ones = [packed(number) for number in range(3)]
    digest = write_bundle(path, ones)
    assert sha256(path.read_bytes()) == digest
    target = Store.open(store)
    done = import_bundle(target, path, "colleague")
    assert set(done.added) == {one.entry.key for one in ones} and done.kept == done.replaced == ()
    for one in ones:
        assert Store.open(store).get(one.entry.key) == replace(one.entry, source="colleague")
        assert target.kernel(one.kernel.digest) == one.kernel
    assert target.verify() == []


def test_equal_content_gives_equal_bytes_whatever_its_order_and_source(path):
    ones = [packed(number) for number in range(3)]
    foreign = [replace(one, entry=replace(one.entry, source="x")) for one in reversed(ones)]
    assert pack(ones) == pack(foreign)
    write_bundle(path, ones)
    os.utime(path, (1, 1))
    assert pack(read_bundle(path)[0]) == path.read_bytes()


def test_without_a_name_the_source_is_made_from_the_files_digest(path, store):
    digest = write_bundle(path, [packed()])
    assert import_bundle(Store.open(store), path).source == f"bundle-{digest[:12]}"


def test_own_verdicts_stay_and_imported_ones_are_replaced(path, store):
    own, foreign = packed(0), packed(1)
    write_bundle(path, [own, foreign])
    target = Store.open(store)
    target.put(replace(own.entry, verdict="baseline", kernel=None), None)
    first = import_bundle(target, path, "a")
    assert (first.kept, first.added) == ((own.entry.key,), (foreign.entry.key,))
    again = import_bundle(target, path, "b")
    assert again.replaced == (foreign.entry.key,) and target.get(foreign.entry.key).source == "b"
    assert target.get(own.entry.key).verdict == "baseline"


def test_a_file_that_cannot_be_written_leaves_the_old_one(path, monkeypatch):
    write_bundle(path, [packed()])
    before = path.read_bytes()

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="No space left"):
        write_bundle(path, [packed(1)])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def refused(path: Path, store: Path, data: bytes, reason: str) -> None:
    path.write_bytes(data)
    with pytest.raises(BundleError, match=reason):
        import_bundle(Store.open(store), path, "x")
    assert list(Store.open(store).entries()) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_a_flipped_byte_or_a_missing_end_is_noticed(path, store, share):
    data = pack([packed(0), packed(1)])
    texts = [start for start in range(0, len(data), 512) if data[start : start + 1] == b"{"]
    at = texts[int(share * len(texts))] + 20
    refused(path, store, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "nothing was imported")
    refused(path, store, data[: int(share * texts[-1])], "nothing was imported")


def test_what_is_no_bundle_says_so(path, store, tmp_path):
    refused(path, store, b"\x80\x04\x95 a pickle", "not a bundle")
    refused(path, store, tar_of({"manifest.json": b"{}"}, resealed=False), "bundle version None")
    other = {"manifest.json": canonical({"bundle": 2, "members": {}}).encode()}
    refused(path, store, tar_of(other, resealed=False), "bundle version 2, where this version reads 1")
    with pytest.raises(BundleError, match="No such file"):
        read_bundle(tmp_path / "missing")


@pytest.mark.parametrize(
    "name", ["../../evil.json", "/etc/evil.json", "entries/../x.json", "kernels/abc.json", "entries/" + 64 * "G" + ".json",
             "code.py", "entries/" + 64 * "a" + ".pkl"],
)  # fmt: skip
def test_members_of_other_names_are_refused(path, store, name):
    refused(path, store, tar_of({**members_of(pack([packed()])), name: b"{}"}), "no bundle has a member of that name")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_members_that_are_no_files_are_refused(path, store, kind):
    member = tarfile.TarInfo("kernels/" + 64 * "a" + ".json")
    member.type, member.linkname = kind, "/etc/passwd"
    refused(
        path,
        store,
        tar_of(members_of(pack([packed()])), extra=(member,)),
        "no bundle has a member of that name or kind",
    )


def test_members_that_are_too_large_or_there_twice_are_refused(path, store):
    large = {f"kernels/{64 * 'a'}.json": b" " * (MOST_BYTES + 1)}
    refused(path, store, tar_of(large), f"{MOST_BYTES + 1} bytes, where {MOST_BYTES} are allowed")
    data = pack([packed()])
    name = next(name for name in members_of(data) if name.startswith("kernels"))
    refused(path, store, tar_of(members_of(data), extra=(tarfile.TarInfo(name),)), "there twice")


def forged(change: Callable[[dict[str, Any]], None], part: str = "entries/") -> bytes:
    """A bundle with one JSON value changed by somebody who then made every digest fit that they can."""
    members = members_of(pack([packed()]))
    name = next(name for name in members if name.startswith(part))
    value = json.loads(members.pop(name))
    change(value)
    content = canonical(value).encode()
    members[name if part == "entries/" else f"kernels/{sha256(content)}.json"] = content
    return tar_of(members)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e.update(schema=99), "schema 99"),
        (lambda e: e.update(key="a" * 64), "another cache key"),
        (lambda e: e["key_fields"].update(number=7), "not that of its key's fields"),
        (lambda e: e.update(region={**e["region"], "outputs": ["i0"]}), "for another region"),
        (lambda e: e.update(source="local", schema=2), "not in the form in which"),
        (lambda e: e.update(source="friend", schema=2), "names its own source"),
        (lambda e: e.update(verdict="baseline", kernel=None), "kernels/None"),
        (lambda e: e["evaluation"].update(status="mismatch"), "TypeError"),
        (lambda e: e["evaluation"].update(complete=False), "no evaluation that its kernel passed"),
        (lambda e: e["evaluation"].update(speedup="fast"), "its numbers are none"),
        (lambda e: e["evaluation"].update(speedup_low=float("inf")), "its numbers are none"),
        (lambda e: e.update(created="yesterday"), "its numbers are none"),
        (lambda e: e.update(title="\x1b[2Jcleared"), "not plain"),
        (lambda e: e.update(title="x" * 1000), "not plain"),
        (lambda e: e.update(schedule={"block": [1]}), "its schedule holds more"),
        (lambda e: e.update(extra=1), "unexpected keyword"),
        (lambda e: e.pop("family"), "family"),
    ],
)  # fmt: skip
def test_entries_that_do_not_hold_together_are_refused(path, store, change, reason):
    refused(path, store, forged(change), reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda k: k.update(source=k["source"].replace("return 0", "system(\"id\"); return 0")), "refused: .*system"),
        (lambda k: k.update(source="#include <cstdlib>\n" + k["source"]), "refused: .*include"),
        (lambda k: k.update(source=k["source"] + "// \x1b[2J"), "not plain text"),
        (lambda k: k.update(language="python"), "not a kernel"),
        (lambda k: k.update(launches=[]), "not a kernel"),
    ],
)  # fmt: skip
def test_kernels_that_the_gate_refuses_are_refused_however_well_sealed(path, store, change, reason):
    refused(path, store, forged(change, "kernels/"), reason)


def test_a_kernel_under_another_ones_name_and_one_without_an_entry_are_refused(path, store):
    members = members_of(pack([packed(0)]))
    name = next(name for name in members if name.startswith("kernels"))
    other = canonical(packed(1).kernel.to_json()).encode()
    refused(path, store, tar_of({**members, name: other}), "does not match its digest")
    refused(path, store, tar_of({**members, f"kernels/{sha256(other)}.json": other}), "no entry is for this kernel")
    refused(path, store, tar_of({n: c for n, c in members.items() if n != name}), "kernels/")


def test_one_bad_member_keeps_all_others_out(path, store):
    spoiled = packed(2, ROW_SUM_SOURCE.replace("return 0", "abort(); return 0"))
    refused(path, store, pack([packed(0), spoiled]), "abort")


def test_a_bundle_cannot_be_made_of_what_does_not_belong_together():
    with pytest.raises(ValueError, match="is for kernel"):
        Packed(entry_for(example_kernel(), 0), packed().kernel)


@pytest.mark.parametrize("name", ["local", "", "a b", "../x", "x,y", "-x", "x" * 49])
def test_sources_have_names_that_settings_and_terminals_can_hold(name):
    from kevolve_inductor.cache.trust import source_name

    with pytest.raises(SettingsError, match="cannot be called"):
        source_name(name)
    assert source_name("team-a.2") == "team-a.2"


def test_trust_names_sources_and_keys(path, store):
    from kevolve_inductor.cache.trust import trusted

    own, foreign = packed().entry, replace(packed().entry, source="team")
    assert trusted(own, ("local",)) and not trusted(own, ("team",))
    assert not trusted(foreign, ("local",)) and trusted(foreign, ("local", "team"))
    assert trusted(foreign, (foreign.key,)) and not trusted(foreign, (foreign.key[:12],))


def test_older_versions_leave_imported_entries_alone(store, monkeypatch):
    """They know one schema, and ours of imported entries is another; so they neither run nor remove them."""
    one = put(Store.open(store), packed())
    assert one.entry.to_json()["schema"] == 1 and "source" not in one.entry.to_json()
    assert replace(one.entry, source="x").to_json()["schema"] == 2


def test_the_generation_tells_sources_apart(store):
    target, one = Store.open(store), packed()
    target.put(replace(one.entry, source="a"), one.kernel)
    before = target.generation()
    target.put(replace(one.entry, source="b"), one.kernel)
    assert target.generation() != before
