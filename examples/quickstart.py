"""A click-through model as a ranking team writes it, compiled with ``backend="kevolve"``. ``make demo`` runs this.

The model is plain PyTorch: raw identifiers are hashed into tables, counters are bucketized, histories of uneven length
are cut to their first events, embeddings meet in a dot interaction, and a gate mixes a few experts for each task.
Runs on a GPU where there is one, else on the CPU; ``--help`` lists what can be changed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# --- the model: nothing below this line knows about kevolve ------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    identifiers: int = 16
    counters: int = 64
    histories: int = 2
    kept_events: int = 10
    table: int = 20_000
    width: int = 16
    experts: int = 32
    experts_used: int = 4
    expert_width: int = 8
    tasks: int = 4


def hash_ids(ids: Tensor, table_size: int) -> Tensor:
    """Multiplicative hashing of 64-bit identifiers into rows of a table."""
    mixed = ids * 2654435761
    mixed = (mixed ^ (mixed >> 29)) & 0x7FFFFFFFFFFFFFFF
    return mixed % table_size


def first_events(values: Tensor, offsets: Tensor, kept: int) -> Tensor:
    """``[rows, kept]``: the first events of each row of a jagged list, 0 where a row is shorter."""
    rows, events = offsets.shape[0] - 1, values.shape[0]
    row = torch.repeat_interleave(
        torch.arange(rows, device=values.device), offsets[1:] - offsets[:-1], output_size=events
    )
    position = torch.arange(events, device=values.device) - offsets[row]
    dense = values.new_zeros(rows, kept + 1)
    dense[row, position.clamp(max=kept)] = values  # what is too late falls into the last column, which is cut off
    return dense[:, :kept]


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers)


class ExpertMixture(nn.Module):
    """Shared experts; each task's gate picks a few of them and weights them."""

    def __init__(self, fan_in: int, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.experts = nn.Linear(fan_in, sizes.experts * sizes.expert_width)
        self.gates = nn.ModuleList(nn.Linear(fan_in, sizes.experts) for _ in range(sizes.tasks))
        self.heads = nn.ModuleList(nn.Linear(sizes.expert_width, 1) for _ in range(sizes.tasks))

    def forward(self, hidden: Tensor) -> Tensor:
        width = self.sizes.expert_width
        outputs = functional.relu(self.experts(hidden)).view(-1, self.sizes.experts, width)
        scores = []
        for gate, head in zip(self.gates, self.heads, strict=True):
            weights, chosen = torch.topk(torch.softmax(gate(hidden), dim=-1), self.sizes.experts_used)
            weights = weights / weights.sum(dim=-1, keepdim=True)
            picked = outputs.gather(1, chosen[..., None].expand(-1, -1, width))
            scores.append(head((weights[..., None] * picked).sum(dim=1)))
        return torch.cat(scores, dim=1)


class ClickModel(nn.Module):
    pair_rows: Tensor
    pair_columns: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        count = sizes.identifiers + sizes.histories + 1
        for feature in range(sizes.counters):
            quantiles = torch.linspace(0.0, 400.0 + feature, 31 + 16 * (feature % 4))
            self.register_buffer(f"borders_{feature}", quantiles)
        self.id_tables = nn.ModuleList(nn.Embedding(sizes.table, sizes.width) for _ in range(sizes.identifiers))
        self.history_tables = nn.ModuleList(
            nn.EmbeddingBag(sizes.table, sizes.width, mode="sum") for _ in range(sizes.histories)
        )
        self.bottom = mlp(sizes.counters, 32, sizes.width)
        pair_rows, pair_columns = torch.tril_indices(count, count, offset=-1)
        self.register_buffer("pair_rows", pair_rows)
        self.register_buffer("pair_columns", pair_columns)
        self.top = mlp(sizes.width + count * (count - 1) // 2, 64, 64)
        self.mixture = ExpertMixture(64, sizes)

    def forward(self, identifiers: Tensor, counters: Tensor, offsets: Tensor, *histories: Tensor) -> Tensor:
        """Columns as the log reader delivers them: ids ``[features, rows]``, counters ``[features, rows]``, then
        where each row's events begin and what they were (item, shop). Returns a probability per task, ``[rows, tasks]``."""
        embedded = [
            table(hash_ids(ids, self.sizes.table)) for table, ids in zip(self.id_tables, identifiers, strict=True)
        ]
        embedded += self.pooled_histories(offsets, histories)
        dense = self.bottom(self.quantiles(counters))
        features = torch.stack([dense, *embedded], dim=1)
        products = torch.bmm(features, features.transpose(1, 2))
        pairs = products[:, self.pair_rows, self.pair_columns]
        return torch.sigmoid(self.mixture(self.top(torch.cat([dense, pairs], dim=1))))

    def quantiles(self, counters: Tensor) -> Tensor:
        """Each counter as its rank among the borders of its own distribution, between -1 and 1."""
        columns = []
        for feature, values in enumerate(counters):
            borders = self.get_buffer(f"borders_{feature}")
            columns.append(torch.bucketize(values, borders) * (2.0 / borders.shape[0]) - 1.0)
        return torch.stack(columns, dim=1)

    def pooled_histories(self, offsets: Tensor, histories: tuple[Tensor, ...]) -> list[Tensor]:
        """Embedded events summed with weights that decay with age; padding weighs nothing."""
        pooled = []
        decay = torch.pow(0.8, torch.arange(self.sizes.kept_events, device=offsets.device))
        for table, values in zip(self.history_tables, histories, strict=True):
            events = first_events(values, offsets, self.sizes.kept_events)
            weights = torch.where(events != 0, decay, 0.0)
            pooled.append(table(hash_ids(events, self.sizes.table), per_sample_weights=weights))
        return pooled


def example_inputs(sizes: Sizes, rows: int, device: str) -> list[Tensor]:
    """A batch with the statistics of click logs: skewed counters, histories of 0 to 40 events."""
    generator = torch.Generator().manual_seed(0)
    identifiers = torch.randint(1, 2**62, (sizes.identifiers, rows), generator=generator)
    counters = torch.empty(sizes.counters, rows).exponential_(0.01, generator=generator)
    offsets = functional.pad(torch.randint(0, 41, (rows,), generator=generator).cumsum(0), (1, 0))
    inputs = [identifiers, counters, offsets]
    inputs += [torch.randint(1, 2**62, (int(offsets[-1]),), generator=generator) for _ in range(sizes.histories)]
    return [tensor.to(device) for tensor in inputs]


# --- the demonstration -------------------------------------------------------------------------------------------------


def main() -> int:
    arguments = parse_arguments()
    if arguments.second:
        return second_compile(arguments)
    with tempfile.TemporaryDirectory(prefix="kevolve-quickstart-") as folder:
        # A store of its own shows the search every time; the store a user has is used when KEVOLVE_STORE names it.
        os.environ.setdefault("KEVOLVE_STORE", folder)
        return demonstrate(arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, help="batch size (default 16384, on a GPU 65536)")
    parser.add_argument("--budget-s", type=float, default=60.0, help="seconds of search (default 60)")
    parser.add_argument("--identifiers", type=int, default=16, help="columns of raw identifiers (default 16)")
    parser.add_argument("--counters", type=int, default=64, help="columns of counters (default 64)")
    parser.add_argument("--second", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.rows = arguments.rows or default_rows(arguments.device)
    return arguments


def default_rows(device: str) -> int:
    return 65536 if device == "cuda" else 16384


def build(device: str, rows: int, sizes: Sizes = Sizes()) -> tuple[ClickModel, list[Tensor]]:
    torch.manual_seed(0)
    return ClickModel(sizes).eval().to(device), example_inputs(sizes, rows, device)


def model_of(arguments: argparse.Namespace) -> tuple[ClickModel, list[Tensor]]:
    sizes = Sizes(identifiers=arguments.identifiers, counters=arguments.counters)
    return build(arguments.device, arguments.rows, sizes)


def compile_with_kevolve(model: nn.Module, budget_s: float) -> Callable[..., Tensor]:
    options: dict[str, Any] = {"kevolve.budget_s": budget_s}
    compiled: Callable[..., Tensor] = torch.compile(model, backend="kevolve", dynamic=False, options=options)
    return compiled


@torch.no_grad()
def demonstrate(arguments: argparse.Namespace) -> int:
    from kevolve_inductor import report

    model, inputs = model_of(arguments)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"Click-through model, {parameters / 1e6:.1f} M parameters, {arguments.rows} rows on {device_name(arguments)}"
    )
    expected = model(*inputs)

    inductor = torch.compile(model, dynamic=False)
    print(
        f"Inductor compiled it in {seconds(lambda: inductor(*inputs)):.1f} s. kevolve looks for what can be faster:\n"
    )
    kevolve = compile_with_kevolve(model, arguments.budget_s)
    with report.progress_bar():
        searched_s = seconds(lambda: kevolve(*inputs))
    run = report.last_run()
    print(f"\n{run.format_table()}\n\nsearch and compile: {searched_s:.1f} s\n")
    if not run.regions:
        print("no region was found: a warning above may say why", file=sys.stderr)
        return 1

    differing = {
        "Inductor": differing_rows(inductor(*inputs), expected),
        "kevolve": differing_rows(kevolve(*inputs), expected),
    }
    show_times({"eager": model, "Inductor": inductor, "kevolve": kevolve}, inputs)
    if not show_agreement(differing, arguments.rows):
        return 1
    searched_again = subprocess.run([sys.executable, *sys.argv, "--second"], check=False).returncode
    if any("budget" in row.verdict for row in run.regions):
        print("the budget did not suffice for every region, so that the second process went on: try --budget-s")
        return 0
    return searched_again


@torch.no_grad()
def second_compile(arguments: argparse.Namespace) -> int:
    """The same model in a new process: every kernel comes from the store."""
    from kevolve_inductor import report

    model, inputs = model_of(arguments)
    kevolve = compile_with_kevolve(model, arguments.budget_s)
    compiled_s = seconds(lambda: kevolve(*inputs))
    run = report.last_run()
    # Where Inductor's own cache held the finished graph there is nothing to decide, and so no row.
    origin = "its kernels came from the store" if run.regions else "Inductor's cache had the whole graph"
    print(f"a second process compiled it in {compiled_s:.1f} s and searched {run.searched} regions: {origin}")
    return int(run.searched > 0)


def device_name(arguments: argparse.Namespace) -> str:
    if arguments.device == "cuda":
        return torch.cuda.get_device_name()
    return f"the CPU ({torch.get_num_threads()} threads)"


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    wait_for_device()
    return time.perf_counter() - started


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def differing_rows(outputs: Tensor, expected: Tensor) -> int:
    return int((~torch.isclose(outputs, expected, rtol=1e-4, atol=1e-5)).any(dim=1).sum())


def show_agreement(differing: dict[str, int], rows: int) -> bool:
    """Whether the compiled models agree with eager. Where the last expert picked and the next one tie to the last bit,
    any change of rounding, Inductor's as well, may pick the other: that is a handful of rows among thousands."""
    for name, count in differing.items():
        print(
            f"{name} agrees with eager on {rows - count} of {rows} rows"
            + (" (the others: experts that tie)" if count else "")
        )
    print()
    return differing["kevolve"] <= rows // 1000


def show_times(models: dict[str, Callable[..., Tensor]], inputs: list[Tensor], rounds: int = 21) -> None:
    """Medians of the whole model, interleaved so that all three see the same machine."""
    samples: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            samples[name].append(seconds(lambda model=model: model(*inputs)))  # type: ignore[misc]
    medians = {name: statistics.median(times) for name, times in samples.items()}
    print("whole model     ms   against Inductor")
    for name, median_s in medians.items():
        print(f"{name:<12}{median_s * 1e3:>7.2f}{medians['Inductor'] / median_s:>12.2f}x")


if __name__ == "__main__":
    sys.exit(main())
