"""Compares an sdist with git's files: ``python tools/check_sdist.py dist/cnnx-*.tar.gz``.

Every file of the repository is in it, but for those that serve the repository alone, and nothing
else is, but for the metadata that the build adds.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

LEFT_OUT = re.compile(r"\.|wheels\.yml$")  # hidden files, and the link to one
ADDED = re.compile(r"PKG-INFO$|setup\.cfg$|cnnx\.egg-info/")


def held(sdist: str) -> set[str]:
    """The files of an sdist, without the folder that they all lie in."""
    with tarfile.open(sdist) as archive:
        return {m.name.partition("/")[2] for m in archive.getmembers() if not m.isdir()}


def tracked() -> set[str]:
    done = subprocess.run(
        ["git", "ls-files", "-z"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(filter(None, done.stdout.split("\0")))


def main() -> int:
    expected = {name for name in tracked() if not LEFT_OUT.match(name)}
    wrong = 0
    for sdist in sys.argv[1:]:
        names = {name for name in held(sdist) if not ADDED.match(name)}
        for title, files in (("missing", expected - names), ("superfluous", names - expected)):
            for name in sorted(files):
                print(f"{sdist}: {title}: {name}")
                wrong += 1
    print(f"{len(expected)} files, {len(sys.argv) - 1} sdists, {wrong} differences")
    return bool(wrong or not sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
