"""What compute-sanitizer reports, read and judged: pure functions of text, tested without a GPU.

Three tools end with `ERROR SUMMARY: N errors`, racecheck with `RACECHECK SUMMARY: N hazards
displayed`. racecheck names each access by kernel and offset. The instruction that stands there,
from cuobjdump, decides whether a hazard is a known false report (racecheck_known.json).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Instructions = Mapping[str, Mapping[int, str]]
"""Opcode, such as LDS, by kernel and by offset in it."""

_SUMMARY = re.compile(
    r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)\b", re.MULTILINE
)
# "at KERNEL+0x260", with debug information also " in FILE:LINE"; older: "at 0x260 in KERNEL".
_ACCESS = re.compile(
    r"(?P<kind>Read|Write) access at (?:"
    r"(?P<new>.+?)\+(?P<new_offset>0x[0-9a-f]+)(?: in \S+)?|"
    r"(?P<old_offset>0x[0-9a-f]+) in (?P<old>.+?))(?: \[(?P<count>\d+) hazards?\])?$"
)
_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)")


@dataclass(frozen=True)
class Access:
    """One side of a hazard."""

    kind: str  # "Read" or "Write"
    kernel: str
    offset: int


@dataclass(frozen=True)
class Hazard:
    """Two accesses to one place of shared memory that racecheck sees no order between."""

    first: Access
    second: Access
    count: int


@dataclass(frozen=True)
class Known:
    """A kind of hazard that is a false report: the opcodes on its two sides, and why."""

    kernel: str  # part of the kernel's symbol
    read: frozenset[str]
    write: frozenset[str]
    reason: str

    def covers(self, hazard: Hazard, instructions: Instructions) -> bool:
        sides = {side.kind: side for side in (hazard.first, hazard.second)}
        if set(sides) != {"Read", "Write"}:
            return False
        wanted = {"Read": self.read, "Write": self.write}
        return all(
            self.kernel in side.kernel and opcode(side, instructions) in wanted[kind]
            for kind, side in sides.items()
        )


def read_known(path: Path) -> list[Known]:
    """The entries of racecheck_known.json."""
    return [
        Known(e["kernel"], frozenset(e["read"]), frozenset(e["write"]), e["reason"])
        for e in json.loads(path.read_text())
    ]


def summary(text: str) -> int | None:
    """Errors or hazards by a tool's own count; None where it did not get to its end."""
    found = _SUMMARY.findall(text)
    return sum(map(int, found)) if found else None


def reports(text: str, limit: int = 40) -> list[str]:
    """The tool's own lines, for a person to read; host backtraces left out."""
    lines = [line for line in text.splitlines() if line.startswith("=========")]
    lines = [x for x in lines if "Host Frame" not in x and " in /" not in x and x.strip("= ")]
    return (
        lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more lines"]
    )


def hazards(text: str) -> Iterator[Hazard]:
    """racecheck's analysis report: a first access, then each one that it collides with.

    Raises:
        ValueError: a hazard in other words than these. To skip it would be to call it known.
    """
    first: Access | None = None
    for line in text.splitlines():
        told = "access at" in line or "hazard" in line
        if not line.startswith("=========") or not told or "SUMMARY" in line:
            continue
        found = _ACCESS.search(line)
        if found is None:
            raise ValueError(f"racecheck: a line of another form: {line}")
        access = Access(
            found["kind"],
            found["new"] or found["old"],
            int(found["new_offset"] or found["old_offset"], 16),
        )
        if "Race reported between" in line:
            first = access
        elif first is None:
            raise ValueError(f"racecheck: a second access without a first: {line}")
        else:
            yield Hazard(first, access, int(found["count"] or 1))


def instructions(sass: str) -> Instructions:
    """Opcodes from the text of `cuobjdump --dump-sass`, without modifiers: LDS of LDS.128."""
    found: dict[str, dict[int, str]] = {}
    current: dict[int, str] = {}
    for line in sass.splitlines():
        if name := _FUNCTION.match(line):
            current = found.setdefault(name[1], {})
        elif at := _INSTRUCTION.match(line):
            current[int(at[1], 16)] = at[2]
    return found


def opcode(access: Access, of: Instructions) -> str:
    """What stands there; "?" where nothing is known of it."""
    return of.get(access.kernel, {}).get(access.offset, "?")


def unknown_hazards(
    text: str, known: Sequence[Known], of: Instructions
) -> tuple[list[str], dict[str, int]]:
    """Lines for hazards that no entry covers, and the number of the others by reason.

    Raises:
        ValueError: a report of another form, or one that is not whole.
    """
    unknown: list[str] = []
    covered: dict[str, int] = {}
    found = list(hazards(text))
    told = text.count("Race reported between")
    if told < (summary(text) or 0):
        raise ValueError(f"racecheck: {summary(text)} hazards, but {told} of them are told")
    for hazard in found:
        entry = next((entry for entry in known if entry.covers(hazard, of)), None)
        if entry is not None:
            covered[entry.reason] = covered.get(entry.reason, 0) + hazard.count
            continue
        sides = [
            f"{x.kind} ({opcode(x, of)}) at {x.kernel}+{x.offset:#x}"
            for x in (hazard.first, hazard.second)
        ]
        unknown.append(f"{' and '.join(sides)}, {hazard.count} hazards")
    return unknown, covered
