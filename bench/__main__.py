"""`bench/run`: every case, every contender in turn, and a table at the end."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import IO, Dict, List, Sequence

from bench import disks, peers, table
from bench.cases import CASES, Case
from bench.measure import Cost, FailedError, Meter
from bench.peers import Contender, Entry, Nbdcopy, Stage
from bench.table import Row

_QUICK_BYTES = 256 << 20
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def main() -> int:
    """The command."""
    options = _parser().parse_args()
    if options.quick:
        options.size, options.runs, options.warm_up = min(options.size, _QUICK_BYTES), min(options.runs, 2), 0
    wanted = [case for case in CASES if not options.case or case.name in options.case]
    print(_machine(), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="anvil-dr-bench-", dir=options.folder))
    failed = False
    try:
        with open(folder / "log", "w+") as log:
            for case in wanted:
                try:
                    _case(case, folder / case.name, log, options)
                except FailedError as error:
                    failed = True
                    print(f"bench: {case.name}: {error}\n{_last_lines(log)}", file=sys.stderr)
    finally:
        shutil.rmtree(folder)
    return 1 if failed else 0


def _case(case: Case, folder: Path, log: IO[str], options: argparse.Namespace) -> None:
    entries: List[Entry] = []
    for entry in case.entries:
        if not any(part in entry.title for part in options.only.split(",")):
            continue
        packages = peers.missing(entry.programs)
        if packages:
            print(table.left_out(entry.title, packages), flush=True)
        else:
            entries.append(entry)
    folder.mkdir()
    size_bytes = max(1 << 20, int(options.size * case.share))
    made = case.make(folder, size_bytes)
    total_bytes = sum(disk.stat().st_size for disk in made.versions[0])
    stages = [Stage(folder / f"contender{number}", log, case.link) for number, _ in enumerate(entries)]
    try:
        contenders = [entry.make(stage) for entry, stage in zip(entries, stages)]
        costs: Dict[int, List[Cost]] = {number: [] for number, _ in enumerate(contenders)}
        fresh = len(made.versions) == 1
        if not fresh:
            for contender in contenders:
                contender.ready(made.versions[-1])
                contender.send(Meter(log), made.versions[-1])
        for run in range(-options.warm_up, options.runs):
            version = made.versions[run % len(made.versions)]
            for number, contender in enumerate(contenders):
                cost = _one(contender, version, log, fresh)
                if run >= 0:
                    costs[number].append(cost)
    finally:
        for stage in stages:
            stage.stack.close()
        shutil.rmtree(folder)
    rows = [Row(entry.title, costs[number]) for number, entry in enumerate(entries)]
    print("\n" + table.render(case.title, total_bytes, made.data_bytes, rows), flush=True)


def _one(contender: Contender, version: Sequence[Path], log: IO[str], fresh: bool) -> Cost:
    """One contender's turn; what came out must equal what went in."""
    if fresh:
        contender.forget()
        disks.touch_memory(sum(disk.stat().st_blocks * 512 for disk in version))
    contender.ready(version)
    meter = Meter(log, contender.stage.servers)
    with meter.transfer() as result:
        wire_bytes = contender.send(meter, version)
    for number, disk in enumerate(version):
        if not disks.same(disk, contender.image(number)):
            raise FailedError(f"{type(contender).__name__} did not copy {disk.name}")
    if isinstance(contender, Nbdcopy):
        wire_bytes = contender.wire_bytes()
    if fresh:
        contender.forget()
    return replace(result[0], wire_bytes=wire_bytes)


def _last_lines(log: IO[str]) -> str:
    log.seek(0)
    return "".join(log.readlines()[-15:])


def _machine() -> str:
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    versions = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {model}, {memory} GiB, {versions}"


def _bytes(text: str) -> int:
    unit = _UNITS.get(text[-1:].upper())
    return int(text[:-1]) * unit if unit else int(text)


def _parser() -> argparse.ArgumentParser:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    parser.add_argument("--case", action="append", choices=names, help="only this one; may be given more than once")
    parser.add_argument("--runs", type=int, default=5, help="of each contender (default: %(default)s)")
    parser.add_argument("--size", type=_bytes, default=2 << 30, help="of the disk, such as 512M (default: 2G)")
    parser.add_argument("--warm-up", type=int, default=1, metavar="RUNS", help="not counted (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="A,B", help="rows whose title has one of these in it")
    parser.add_argument("--quick", action="store_true", help="small disks, two runs: does it work at all?")
    parser.add_argument("--folder", default="/dev/shm", help="where the disks and images are (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
