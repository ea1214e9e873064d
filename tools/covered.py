"""What gcov counted in the Cython and the C: lines and branches, file by file, and what is missing.

    python tools/covered.py build coverage.json

from the root of the sources, with the folder of the object files, and coverage's report for the
sums of the Python. The second half of tools/coverage.sh.

The kernels are compiled once for each instruction set and type, and their counts are added: a line
counts if any of its instances ran it, a branch if any took it. Cython writes each line's C under a
comment that names it. Of that C the lines count, and the branches that the line itself asks for;
those by which Cython looks for an exception after each call, or drops a reference, do not.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

INSTANCE = re.compile(r"_f(32|64)_(baseline|avx2|avx512|neon)")
# In Cython's C: where a line of ours begins, where it ends, and a condition that the line has.
OURS = re.compile(r' */\* "(cnnx/.*)":(\d+)$')
NOBODYS = re.compile(r" */\* (Python wrapper|function exit code) \*/| *__pyx_L\d+_error:;")
CONDITION = re.compile(r" *(?:} else )?(?:if|while|for|switch) \((?!.*(?:likely|__Pyx|Py[A-Z_]))")

Place = tuple[str, int]


class Counts:
    """How often each line ran and each branch was taken, over all instances."""

    def __init__(self) -> None:
        self.lines: dict[Place, int] = defaultdict(int)
        # The compiler may make more branches of a condition in one instance than in another: only
        # equal numbers of them are the same ones.
        self.branches: dict[Place, dict[tuple[str, int], list[int]]] = defaultdict(dict)

    def add(self, place: Place, line: dict[str, Any], branches: bool = True) -> None:
        self.lines[place] += line["count"]
        taken = [branch["count"] for branch in line["branches"]]
        if branches and taken:
            function = INSTANCE.sub("", line.get("function_name", "")), len(taken)
            before = self.branches[place].get(function, [0] * len(taken))
            self.branches[place][function] = [a + b for a, b in zip(before, taken, strict=True)]

    def outcomes(self, place: Place) -> list[int]:
        """The branches of a line: for each function those of the instance with most of them."""
        most: dict[str, list[int]] = {}
        for (function, number), taken in self.branches.get(place, {}).items():
            if number > len(most.get(function, [])):
                most[function] = taken
        return [count for taken in most.values() for count in taken]


def of_cython(path: str) -> dict[int, tuple[Place, bool]]:
    """For each line of Cython's C the line it comes from, and whether it is a condition there."""
    found, place = {}, None
    for number, text in enumerate(Path(path).read_text().splitlines(), 1):
        if begins := OURS.match(text):
            place = begins[1], int(begins[2])
        elif NOBODYS.match(text):
            place = None
        elif place:
            found[number] = place, bool(CONDITION.match(text))
    return found


def measure(build: str) -> Counts:
    counts = Counts()
    cython = of_cython("cnnx/_kernels.c")
    for notes in sorted(Path(build).rglob("*.gcno")):
        command = ["gcov", "--json-format", "--branch-probabilities", "--stdout", str(notes)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for source in json.loads(report)["files"]:
            for line in source["lines"]:
                if source["file"] == "cnnx/_kernels.c":
                    if line["line_number"] in cython:
                        place, condition = cython[line["line_number"]]
                        wrapper = line.get("function_name", "").startswith("__pyx_pw_")
                        counts.add(place, line, condition and not wrapper)
                elif source["file"].startswith("cnnx/"):
                    counts.add((source["file"], line["line_number"]), line)
    return counts


def row(name: str, lines: list[int], branches: list[int], missing: str = "") -> str:
    cells = []
    for kind in lines, branches:
        ran = sum(count > 0 for count in kind)
        cells.append(f"{ran:6} of {len(kind):5} {100 * ran / max(len(kind), 1):6.1f} %")
    return f"{name:38} {cells[0]} {cells[1]}  {missing}".rstrip()


def main() -> None:
    counts = measure(sys.argv[1])
    python = json.loads(Path(sys.argv[2]).read_text())["totals"]
    files = sorted({name for name, _ in counts.lines})
    total: dict[str, tuple[list[int], list[int]]] = {
        "Python": (
            [1] * python["covered_lines"] + [0] * python["missing_lines"],
            [1] * python["covered_branches"] + [0] * python["missing_branches"],
        ),
        "Cython": ([], []),
        "C": ([], []),
    }
    print(f"{'':38} {'lines':>22} {'branches':>22}   not run; a branch not taken: in brackets")
    for name in files:
        places = sorted(place for place in counts.lines if place[0] == name)
        lines = [counts.lines[place] for place in places]
        branches = [count for place in places for count in counts.outcomes(place)]
        missing = [
            f"{place[1]}" if not counts.lines[place] else f"({place[1]})"
            for place in places
            if not counts.lines[place] or 0 in counts.outcomes(place)
        ]
        print(row(name, lines, branches, " ".join(missing)))
        kind = total["Cython" if name.endswith((".pyx", ".pxi", ".pxd")) else "C"]
        kind[0].extend(lines)
        kind[1].extend(branches)
    for name, (lines, branches) in total.items():
        print(row(name, lines, branches))


if __name__ == "__main__":
    main()
