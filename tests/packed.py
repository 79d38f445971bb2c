"""Entries as a search leaves them, complete enough to be exported and imported."""

from __future__ import annotations

import json
from typing import Any

from kevolve_inductor.cache.bundle import Packed
from kevolve_inductor.cache.gc import WORKLOADS
from kevolve_inductor.cache.store import Store
from kevolve_inductor.evaluate.evaluation import Diagnosis, Passed, to_json
from kevolve_inductor.kernel import Kernel, digest_of
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.testing.evaluators import ROW_SUM_SOURCE, row_sum_kernel, row_sum_region, row_sum_workload
from kevolve_inductor.testing.stores import example_entry


def packed(number: int = 0, source: str = ROW_SUM_SOURCE, sanitizers: bool = True, **changes: Any) -> Packed:
    kernel = row_sum_kernel(f"// {number}\n{source}")
    return Packed(entry_for(kernel, number, sanitizers, **changes), kernel)


def entry_for(kernel: Kernel, number: int, sanitizers: bool = True, **changes: Any) -> Any:
    target = CpuPlatform().target()
    key_fields = {
        "number": number,
        "region": row_sum_region().digest,
        "target": target.to_json() | {"features": sorted(target.features)},
    }
    evidence = Passed(
        20.0, {"eager": 100.0, "inductor": 80.0}, 4.0, 3.9, 0.0, Diagnosis("memory", "a test", 1e9, 1e9, 0.5), 0.1,
        sanitizers={"address sanitizer": "clean on normal (0.1 s)"} if sanitizers else {},
    )  # fmt: skip
    fields = {
        "key": digest_of(key_fields), "key_fields": key_fields, "evaluation": to_json(evidence),
        "region": json.loads(json.dumps(row_sum_region().to_json())),
    }  # fmt: skip
    return example_entry(number, kernel, **{**fields, **changes})


def put(store: Store, one: Packed) -> Packed:
    store.put(one.entry, one.kernel)
    store.remember(WORKLOADS, one.entry.key, row_sum_workload().to_json())
    return one
