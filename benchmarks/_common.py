"""What the benchmarks share: a stopwatch, the divergence to a target, and the record of a run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import pymc_flows
from pymc_flows import NormalizingFlow
from pymc_flows.targets import Target

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pymc", "pytensor", "numba", "jax", "jaxlib", "numpy", "scipy")
PEER_PACKAGES = ("optax", "flowjax", "numpyro")
FRESH_DRAWS = 20_000

type Row = Mapping[str, Any]


@dataclass
class Seconds:
    """Wall and process CPU time of a block; the CPU time hardly depends on other load."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def stopwatch() -> Iterator[Seconds]:
    """Measure the block; the result is complete after it."""
    seconds = Seconds()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield seconds
    finally:
        seconds.wall = time.perf_counter() - wall
        seconds.cpu = time.process_time() - cpu


@dataclass(frozen=True)
class Divergence:
    """KL(q ‖ p) = E_q[log q − log p̃] + log Z, in nats, from fresh draws."""

    kl: float
    standard_error: float
    largest: float
    """The largest single log q − log p: a few draws in a far tail can carry a bad value."""
    points: np.ndarray = field(repr=False)


def divergence(
    approx: NormalizingFlow, target: Target, random_seed: int, draws: int = FRESH_DRAWS
) -> Divergence:
    """Measure how far an approximation of ``target.model()`` is from the target."""
    points, log_q = approx.sample_and_log_prob(draws, random_seed=random_seed)
    gap = log_q - target.log_density(points) + target.log_z
    return Divergence(gap.mean(), gap.std() / np.sqrt(draws), gap.max(), points)


@dataclass(frozen=True)
class Check:
    """A bar and whether it was reached."""

    what: str
    value: float
    bar: str
    holds: bool

    def row(self) -> Row:
        """The line of a table."""
        verdict = "yes" if self.holds else "NO"
        return {"bar": f"{self.what} {self.bar}", "measured": self.value, "holds": verdict}


@dataclass
class Report:
    """The record of one run.

    Attributes
    ----------
    name : str
        Module of the benchmark, without the package.
    about : str
        What is measured and how, for a reader who has only the page.
    settings : mapping
        Seeds, steps and the like.
    tables : mapping of str to list of rows
        By heading; the columns are those of the first row.
    checks : list of Check
    details : mapping
        What goes into the JSON file only.
    """

    name: str
    about: str
    settings: Mapping[str, Any]
    tables: dict[str, Sequence[Row]]
    checks: list[Check] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)

    def save(self, arguments: argparse.Namespace, *, show: bool = True) -> None:
        """Write ``NAME.json`` and ``NAME.md`` to ``arguments.out``; by default show the tables."""
        record = {"environment": environment(), "command": arguments.command, **asdict(self)}
        out = Path(arguments.out)
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1, default=_plain, ensure_ascii=False)
        (out / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")
        page = self.markdown(record)
        (out / f"{self.name}.md").write_text(page, encoding="utf-8")
        if show:
            say(page)

    def markdown(self, record: Mapping[str, Any]) -> str:
        """Return the page of the run."""
        parts = [f"# {self.name}", self.about]
        if self.checks:
            parts.append(markdown_table([check.row() for check in self.checks]))
        for heading, rows in self.tables.items():
            parts += [f"## {heading}", markdown_table(rows)]
        facts = {"command": f"`{record['command']}`", **self.settings, **record["environment"]}
        parts += ["## Made by", "\n".join(f"- {k}: {v}" for k, v in facts.items())]
        return "\n\n".join(parts) + "\n"


def say(text: str) -> None:
    """Show something to who runs the benchmark."""
    print(text, flush=True)  # noqa: T201


def markdown_table(rows: Sequence[Row]) -> str:
    """Format rows; numbers to four significant digits."""
    if not rows:
        return "(none)"
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(x.replace('|', '\\|') for x in line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _plain(value: np.generic | np.ndarray) -> Any:
    return value.tolist()


def environment() -> dict[str, str]:
    """Versions, machine, commit and the load when the run ended."""
    versions = {"pymc-flows": pymc_flows.__version__, **package_versions(PACKAGES)}
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg()) if hasattr(os, "getloadavg") else "?"
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "load average (1, 5, 15 minutes)": load,
        "Python": platform.python_version(),
        **versions,
    }
    if jax := sys.modules.get("jax"):
        facts["JAX device"] = jax.default_backend()
    return facts


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of installed packages by name."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """Commit of the library that was measured, which need not lie beside the benchmarks."""

    def git(*arguments: str) -> str:
        folder = Path(pymc_flows.__file__).parent
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Parser(argparse.ArgumentParser):
    """Arguments of a benchmark; every one has ``--out``."""

    def __init__(self, name: str, description: str | None):
        super().__init__(prog=f"python -m benchmarks.{name}", description=description)
        self.add_argument(
            "--out",
            default=ROOT / "benchmarks" / "results",
            help="folder of the results (default: benchmarks/results)",
        )

    def refuse_unknown(self, names: Sequence[str], known: Sequence[str]) -> None:
        """End with an error if a name is not one of those known."""
        if unknown := sorted(set(names) - set(known)):
            self.error(f"unknown: {', '.join(unknown)}\nknown: {', '.join(known)}")

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse, and keep the command as it would be typed.

        Of paths that lead out of the repository only the last part is kept: the rest is nobody
        else's concern.
        """
        given = list(sys.argv[1:] if argv is None else argv)
        arguments = self.parse_args(given)
        shown = [Path(x).name if Path(x).is_absolute() else x for x in given]
        arguments.command = f"{self.prog} {shlex.join(shown)}".strip()
        return arguments
