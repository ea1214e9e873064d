"""What the text of an error must say."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest


def assert_says(text: str, *parts: str) -> None:
    """Assert that each part stands in the text, and not within a longer word or number."""
    for part in parts:
        assert re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text), f"{part!r} is not in: {text}"


def refuses(error: type[Exception], call: Callable[[], Any], *parts: str) -> None:
    """Assert that the call raises that very error, and that its text has the parts."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert_says(str(caught.value), *parts)
