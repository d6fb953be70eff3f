"""Cut operations on a bank short at every system call, and look at what is left.

    python harness.py --library faults.so --folder EMPTY_FOLDER --report report.json [--sampling quick] [--network]
        [SCENARIO ...]

One process imports everything once and forks a child for each operation that a fault strikes; a second child looks at
what was left (`checks`). Syncs cost nothing, for what is durable is decided by replaying traces (`replay`).

An operation that is told of a fault must end with a `BankError` or finish the work. Then another writer is opened in
the same process, as a user would try again, and the process dies without closing anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import gc
import hashlib
import json
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from checks import Broken, Inspector
from children import Outcome, forked, must, operate
from replay import Disk, Loss, Op, Record, Tree, points, read_trace, read_tree, write_tree
from scenarios import BROKEN, FURTHER, SCENARIOS, Scenario
from shim import EXIT_CRASHED, Mode, Shim

from memspan.bank import database

_SYNC_ERROR_THEN_LOSS = "sync error, then power lost"
# What strikes, by kind.
KINDS: dict[str, tuple[str, ...]] = {
    "exit": ("killed", "torn"),
    "power": tuple(loss.value for loss in Loss),
    "error": ("full", "full once", "short write", "sync error", _SYNC_ERROR_THEN_LOSS),
}
_NEEDS_SPACE = {Op.CREATE, Op.MKDIR, Op.WRITE, Op.RENAME, Op.LINK, Op.SHARED}
_ERRORS = {
    "full": (Mode.FULL, _NEEDS_SPACE),
    "full once": (Mode.FULL_ONCE, _NEEDS_SPACE),
    "short write": (Mode.SHORT, {Op.WRITE}),
    "sync error": (Mode.SYNC_ERROR, {Op.SYNC}),
}
# Of so many ends of the process, one is real; the others are replayed, which is quicker and must come to the same.
_REAL_EVERY = 16
# A disk that stays full differs little from one that is full once: so many of its points are left out.
_FULL_EVERY = 5
# Of a run of like calls, those so far apart are tried, replayed or struck for real. SQLite writes its log in pairs of
# calls: an odd distance meets both kinds.
_REPLAYED_EVERY, _STRUCK_EVERY = 13, 29
# Which calls are compared with a call: that before it, or those on both sides.
_FIRST, _FIRST_AND_LAST = slice(0, 2), slice(0, 3)
# At these most is at stake: content comes, is not durable yet, or its name is about to change.
_DECISIVE = {Op.WRITE, Op.SYNC, Op.RENAME, Op.UNLINK}
_RANDOM = re.compile(r"\d+-|[0-9a-f]{32}|\.tmp\w+")


class Sampling(enum.Enum):
    """Which calls of an operation are tried."""

    QUICK = "quick"  # of each kind of call, the first; and of those at which nothing fails, the decisive ones
    USUAL = "usual"  # both ends of every run of like calls, and some calls in between
    THOROUGH = "thorough"  # every call; and every end of the process is real


@dataclass(slots=True)
class Findings:
    """What one kind of fault did to one scenario.

    Attributes:
        points: faults struck.
        checked: states looked at; a state that an earlier fault left too, with as much acknowledged, is not looked
            at again.
        violations: what did not hold, and after which fault.
    """

    scenario: str
    fault: str
    points: int = 0
    checked: int = 0
    violations: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("library", "folder", "report"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--sampling", type=Sampling, default=Sampling.USUAL, help="quick, usual or thorough")
    parser.add_argument("--network", action="store_true", help="as on a network folder: with a journal, without a log")
    parser.add_argument("scenarios", nargs="*", help="of SCENARIOS and BROKEN; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.network:
        database.network_type_with_warning = lambda folder: "made up"
    warnings.simplefilter("ignore", DeprecationWarning)  # forking is safe here: no other thread runs
    harness = Harness(Shim(arguments.library), arguments.folder.resolve(), arguments.sampling)
    kinds = {name: (scenario, tuple(KINDS)) for name, scenario in SCENARIOS.items()}
    kinds |= {name: (scenario, (kind,)) for name, (scenario, kind) in BROKEN.items()}
    report: dict[str, Any] = {"findings": [], "seconds": {}}
    for name in arguments.scenarios or kinds:
        started = time.monotonic()
        try:
            findings = harness.run(name, *kinds[name])
        except Broken as broken:
            findings = [Findings(name, "undisturbed", violations=[str(broken)])]
        report["findings"] += [dataclasses.asdict(found) for found in findings]
        report["seconds"][name] = round(time.monotonic() - started, 1)
    arguments.report.write_text(json.dumps(report, indent=1))


class Harness:
    """Runs scenarios, one at a time, below a folder of its own."""

    def __init__(self, shim: Shim, folder: Path, sampling: Sampling) -> None:
        self._shim, self._folder, self._sampling = shim, folder, sampling
        gc.collect()
        gc.freeze()  # children look at what the parent holds, and do not copy it

    def run(self, name: str, scenario: Scenario, kinds: Sequence[str]) -> list[Findings]:
        """Try every fault of some kinds on a scenario."""
        run = _Run(name, scenario, self._shim, self._folder, self._sampling)
        try:
            run.prepare()
            found: list[Findings] = []
            if "exit" in kinds:
                found += run.exits()
            if "power" in kinds:
                found += run.power_losses()
            if "error" in kinds:
                found += run.errors()
        finally:
            run.inspector.close()
        return found


class _Run:
    """One scenario: what is there before, every call that it makes, and what faults at these leave."""

    def __init__(self, name: str, scenario: Scenario, shim: Shim, folder: Path, sampling: Sampling) -> None:
        self._name, self._scenario, self._shim, self._sampling = name, scenario, shim, sampling
        self._root, self._trace = folder / "root", folder / "trace"
        self._before: Tree = {}
        self._records: list[Record] = []  # of the operation undisturbed
        self._seen: set[bytes] = set()
        for given in scenario.states:
            for entry in (FURTHER, *scenario.erased, *(given or {}).values()):
                entry.latents()  # once, before children are forked
        self.inspector = Inspector(shim, self._root / scenario.bank, scenario)

    def prepare(self) -> None:
        """Make what is there before, and do the operation once undisturbed: its trace must explain what it leaves."""
        _clear(self._root)
        self._root.mkdir()
        must(forked(lambda: self._scenario.prepare(self._root / self._scenario.bank)))
        self._before = read_tree(self._root)
        disk, outcome = self._strike(Mode.COUNT)
        must(outcome)
        self._records = self._replay(disk)
        if disk.acknowledged != len(self._scenario.states) - 1:
            raise Broken(f"{self._name}: {disk.acknowledged} transactions, {len(self._scenario.states)} states")
        text = self.inspector.look(disk.acknowledged)
        if text and self._name not in BROKEN:
            raise Broken(f"{self._name}, undisturbed: {text}")

    def exits(self) -> list[Findings]:
        """The process ends before a call, or half through a write. The page cache survives: all written is there."""
        found = {Mode.CRASH: Findings(self._name, "killed"), Mode.TORN: Findings(self._name, "torn")}
        thorough, nth_write = self._sampling is Sampling.THOROUGH, 0
        for record, disk in self._undisturbed():
            nth_write += record is not None and record.op is Op.WRITE
            for mode, findings in found.items():
                if mode is Mode.TORN and (not record or record.op is not Op.WRITE):
                    continue
                where = f"{findings.fault} at {_name(record)}"
                if record and (thorough or findings.points % _REAL_EVERY == 0):
                    self._exit(findings, where, mode, record.call if mode is Mode.CRASH else nth_write)
                else:
                    tree = disk.torn(record) if record and mode is Mode.TORN else disk.kept()
                    self._check_replayed(findings, where, tree, disk.acknowledged)
        return list(found.values())

    def power_losses(self) -> list[Findings]:
        """Power is lost before a call: replayed from the trace of the undisturbed run."""
        found = {loss: Findings(self._name, loss.value) for loss in Loss}
        for record, disk in self._undisturbed():
            seed = record.call if record else 0
            for loss, findings in found.items():
                where = f"power lost ({loss.value}) at {_name(record)}"
                self._check_replayed(findings, where, disk.left(loss, seed), disk.acknowledged)
        return list(found.values())

    def errors(self) -> list[Findings]:
        """A system call fails or does half, and the operation goes on."""
        found = {fault: Findings(self._name, fault) for fault in KINDS["error"]}
        for fault, (mode, kinds) in _ERRORS.items():
            calls = [record for record in self._records if record.op in kinds]
            tried = _tried(calls, self._sampling, _STRUCK_EVERY, _FIRST_AND_LAST)
            if self._sampling is not Sampling.THOROUGH and mode is Mode.FULL:
                tried = tried[::_FULL_EVERY]
            for index in tried:
                self._error(found, fault, mode, index + 1, calls[index])
        return list(found.values())

    def _exit(self, findings: Findings, where: str, mode: Mode, nth: int) -> None:
        """End the process for real; its trace must tell what it leaves."""
        findings.points += 1
        disk, outcome = self._strike(mode, nth)
        if outcome.status != EXIT_CRASHED:
            raise Broken(f"{self._name}, {where}: {outcome}")
        self._replay(disk)
        self._check(findings, where, disk.acknowledged)

    def _error(self, found: dict[str, Findings], fault: str, mode: Mode, nth: int, record: Record) -> None:
        findings, where = found[fault], f"{fault} at {_name(record)}"
        findings.points += 1
        disk, outcome = self._strike(mode, nth)
        if outcome.status == 0 and not outcome.result["fired"]:
            raise Broken(f"{self._name}, {where}: the fault did not happen")
        if outcome.status or outcome.result["problem"]:
            findings.violations.append(f"{where}: {outcome}")
        self._replay(disk)
        left = disk.left(Loss.ALL)
        self._check(findings, where, disk.acknowledged)
        if mode is Mode.SYNC_ERROR:
            where += ", then power lost"
            self._check_replayed(found[_SYNC_ERROR_THEN_LOSS], where, left, disk.acknowledged)

    def _strike(self, mode: Mode, nth: int = 0) -> tuple[Disk, Outcome]:
        """Do the operation from the start, in a child, under a fault; also return the disk as it was before."""
        _clear(self._root)
        write_tree(self._before, self._root)
        disk = Disk(self._root)
        return disk, forked(lambda: operate(self._shim, self._scenario, self._root, self._trace, mode, nth))

    def _replay(self, disk: Disk) -> list[Record]:
        """Apply the last operation's trace; it must lead to what is there."""
        records = read_trace(self._trace)
        for record in records:
            disk.apply(record)
        if disk.kept() != read_tree(self._root):
            raise Broken(f"{self._name}: files change in a way that the trace does not tell")
        return records

    def _undisturbed(self) -> Iterator[tuple[Record | None, Disk]]:
        """The disk before each call of the undisturbed operation, with that call; after the last, with None."""
        disk, outcome = self._strike(Mode.COUNT)
        must(outcome)
        records = read_trace(self._trace)
        calls = [record for record in records if record.op not in (Op.MARK, Op.SHARED)]
        if self._sampling is Sampling.QUICK:
            calls = [call for call in calls if call.op in _DECISIVE]
        tried = {calls[index].call for index in _tried(calls, self._sampling, _REPLAYED_EVERY, _FIRST)}
        for record in points(disk, records):
            if not record or record.call in tried:
                yield record, disk

    def _check_replayed(self, findings: Findings, where: str, tree: Tree, acknowledged: int) -> None:
        findings.points += 1
        key = _digest(tree, acknowledged)
        if key not in self._seen:
            self._seen.add(key)
            _clear(self._root)
            write_tree(tree, self._root)
            self._check(findings, where, acknowledged)

    def _check(self, findings: Findings, where: str, acknowledged: int) -> None:
        findings.checked += 1
        text = self.inspector.look(acknowledged)
        if text:
            findings.violations.append(f"{where}, {acknowledged} acknowledged: {text}")


def _name(record: Record | None) -> str:
    return f"call {record.call}, {record}" if record else "the end"


def _tried(calls: Sequence[Record], sampling: Sampling, every: int, around: slice) -> list[int]:
    """Indices of the calls that are tried.

    Args:
        every: how far apart, where a sample is taken of a run of like calls.
        around: of (the call before, the call, the call after), those that are compared: unlike ones end a run.
    """
    if sampling is Sampling.THOROUGH:
        return list(range(len(calls)))
    kinds = [(record.op, _RANDOM.sub("", record.path)) for record in calls]
    if sampling is Sampling.QUICK:
        return [index for index, kind in enumerate(kinds) if kinds.index(kind) == index]
    near = [(kinds[max(index - 1, 0)], kind, *kinds[index + 1 :][:1])[around] for index, kind in enumerate(kinds)]
    return [index for index, compared in enumerate(near) if index % every == 0 or len(set(compared)) > 1]


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _digest(tree: Tree, acknowledged: int) -> bytes:
    digest = hashlib.sha256(str(acknowledged).encode())
    for name, content in sorted(tree.items()):
        digest.update(repr((name, None if content is None else len(content))).encode())
        digest.update(content or b"")
    return digest.digest()


if __name__ == "__main__":
    main()
