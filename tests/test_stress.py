"""The stress test's short form: many threads, one of which changes the number of threads."""

from __future__ import annotations

import stress


def test_many_threads_at_once() -> None:
    counts = stress.stress(seconds=4)
    assert sum(counts.values()) > 20
