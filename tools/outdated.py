"""Say which pins of constraints.txt are behind the newest release.

`python tools/outdated.py`, run by the environment of `make venv`, asks pip and prints one line for each such pin.
The exit code is 1 if there is any, so that a scheduled job can tell.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


def normal(name: str) -> str:
    """Return a distribution's name as indexes spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Return the version that each line `name==version` pins, by normalized name."""
    return {normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE)}


def behind(pinned: dict[str, str], listed: list[dict[str, str]]) -> list[str]:
    """Return a line for each pin with a newer release.

    Args:
        pinned: Versions by normalized name.
        listed: What `pip list --outdated --format json` prints.
    """
    newest = {normal(entry["name"]): entry["latest_version"] for entry in listed}
    return [f"{name} {version} -> {newest[name]}" for name, version in pinned.items() if name in newest]


def main() -> int:
    """Print what is behind."""
    command = [sys.executable, "-m", "pip", "list", "--outdated", "--format", "json"]
    listed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)  # noqa: S603
    lines = behind(pins(CONSTRAINTS.read_text(encoding="utf-8")), listed)
    print("\n".join(lines) or "every pin is the newest release")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
