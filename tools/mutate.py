"""Mutation testing: does the suite notice when a kernel or a layer is wrong?

    python -m tools.mutate                 all of tests/mutants.toml
    python -m tools.mutate --only pool     those whose file or reason contains a word
    python -m tools.mutate --part 2/5      the second fifth of them

Each mutant is one small mistake. Those in C and Cython are built all at once, each behind a switch
that the environment turns on, so that the kernels are compiled a single time:

    j < n      becomes      (cnnx_mutant == 7 ? (j <= n) : (j < n))

The tests that a mutant names run until one fails. Those that no test notices are printed at the
end, and each of them is a test that is missing. The copy that is mutated stays in --folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "mutants.toml"
SECONDS = 150  # for one file of tests; a mutant that never ends is noticed too

SWITCH = """
extern int cnnx_mutant; /* which mutation is on; the first is 1 */
"""
SETTER = """
#include <stdlib.h>
int cnnx_mutant = 0;
__attribute__((constructor)) static void choose_mutant(void)
{
    const char *text = getenv("CNNX_MUTANT");
    if (text) cnnx_mutant = atoi(text);
}
"""


def mutants() -> list[dict[str, Any]]:
    """The table: file, old, new, breaks, tests, and `where` if `old` alone is not unique."""
    entries: list[dict[str, Any]] = tomllib.loads(TABLE.read_text(encoding="utf-8"))["mutant"]
    return entries


def span(mutant: dict[str, Any], text: str) -> tuple[int, int]:
    """Begin and end of the mutated text; `where` is what it stands in, with @ in its place."""
    where, old = mutant.get("where", "@"), mutant["old"]
    context = where.replace("@", old)
    if text.count(context) != 1:
        raise ValueError(
            f"{mutant['file']}: {context!r} occurs {text.count(context)} times, not once"
        )
    begin = text.index(context) + where.index("@")
    return begin, begin + len(old)


def switched(number: int, mutant: dict[str, Any]) -> str:
    """Old and new text behind a switch."""
    old, new = mutant["old"], mutant["new"]
    if mutant["file"].endswith((".pyx", ".pxi")):
        return f"(({new}) if cnnx_mutant == {number} else ({old}))"
    if old.endswith((";", "}")):
        return f"if (cnnx_mutant == {number}) {{ {new} }} else {{ {old} }}"
    return f"(cnnx_mutant == {number} ? ({new}) : ({old}))"


def copy_tree(folder: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copyfile(ROOT / name, target)


def build(folder: Path, entries: list[dict[str, Any]]) -> None:
    """All mutants of compiled files into the copy, and build it."""
    compiled = {m["file"] for m in entries if not m["file"].endswith(".py")}
    for name in compiled:
        text = (ROOT / name).read_text(encoding="utf-8")
        places = [
            (*span(m, text), switched(n, m)) for n, m in enumerate(entries, 1) if m["file"] == name
        ]
        for begin, end, code in sorted(places, reverse=True):
            text = text[:begin] + code + text[end:]
        (folder / name).write_text(text, encoding="utf-8")
    header, dispatch, declarations = (
        folder / "cnnx" / name for name in ("_csrc/kernels.h", "_csrc/dispatch.c", "_kernels.pxd")
    )
    text = header.read_text(encoding="utf-8")
    before, end, after = text.rpartition("#endif")
    header.write_text(before + SWITCH + end + after, encoding="utf-8")
    dispatch.write_text(dispatch.read_text(encoding="utf-8") + SETTER, encoding="utf-8")
    text = declarations.read_text(encoding="utf-8")
    declarations.write_text(
        text.replace(
            "    ctypedef struct cnnx_conv:\n",
            "    int cnnx_mutant\n\n    ctypedef struct cnnx_conv:\n",
            1,
        )
    )
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {**os.environ, "CNNX_REQUIRE_EXTENSION": "1"}
    subprocess.run(command, cwd=folder, check=True, env=environment)


def noticed(folder: Path, number: int, mutant: dict[str, Any]) -> str:
    """How the suite noticed the mutant; nothing if it did not."""
    path = folder / mutant["file"]
    plain = path.read_text(encoding="utf-8")
    if mutant["file"].endswith(".py"):
        begin, end = span(mutant, plain)
        path.write_text(plain[:begin] + mutant["new"] + plain[end:], encoding="utf-8")
    environment = {**os.environ, "CNNX_MUTANT": str(number), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
    if not mutant["file"].endswith(".py"):
        command += ["-k", "not numpy"]  # the fallback has no kernels
    try:
        for tests in mutant["tests"]:
            done = subprocess.run(
                [*command, tests], cwd=folder, env=environment, timeout=SECONDS,
                capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode < 0:
                return f"{tests}: signal {-done.returncode}"
            if done.returncode == 1:
                failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
                return failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else tests
            if done.returncode:
                raise RuntimeError(f"{tests}: {done.stdout}{done.stderr}")
        return ""
    except subprocess.TimeoutExpired:
        return "it never ends"
    finally:
        path.write_text(plain, encoding="utf-8")


def chosen(given: argparse.Namespace, entries: list[dict[str, Any]]) -> Iterator[tuple[int, Any]]:
    numbered = list(enumerate(entries, 1))
    if given.only:
        words = given.only.lower()
        numbered = [
            (n, m) for n, m in numbered if words in f"{n} {m['file']} {m['breaks']}".lower()
        ]
    if given.part:
        part, parts = map(int, given.part.split("/"))
        size = -(-len(numbered) // parts)
        numbered = numbered[(part - 1) * size : part * size]
    yield from numbered


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutate", description=__doc__)
    parser.add_argument("--only", help="mutants whose file or reason contains this")
    parser.add_argument("--part", help="K/N: the K-th of N parts")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cnnx-mutants"))
    parser.add_argument("--built", action="store_true", help="the copy in --folder is up to date")
    given = parser.parse_args()
    entries = mutants()
    if not given.built:
        copy_tree(given.folder)
        build(given.folder, entries)
    survivors, count = [], 0
    for number, mutant in chosen(given, entries):
        start, count = time.monotonic(), count + 1
        how = noticed(given.folder, number, mutant)
        if not how:
            survivors.append((number, mutant))
        name = f"{number:3} {mutant['file'].removeprefix('cnnx/')}: {mutant['breaks']}"
        print(f"{name}\n      {how or 'SURVIVES'} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{count - len(survivors)} of {count} mutants noticed")
    for number, mutant in survivors:
        print(f"survivor {number}: {mutant['file']}: {mutant['old']} -> {mutant['new']}")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
