"""Opens safetensors files whose path need not be UTF-8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open


@contextmanager
def opened_tensors(path: Path, framework: str) -> Iterator[Any]:
    """Open a file as `safe_open` does. The library refuses paths that are not UTF-8; it gets a descriptor for these.

    Args:
        path: The file.
        framework: `pt` or `numpy`: what its tensors become.

    Raises:
        SafetensorError: It is no safetensors file.
    """
    with ExitStack() as stack:
        name = os.fsencode(path)
        try:
            name.decode("utf-8")
        except UnicodeDecodeError:
            name = b"/dev/fd/%d" % stack.enter_context(path.open("rb")).fileno()
        yield stack.enter_context(safe_open(name.decode("utf-8"), framework=framework))
