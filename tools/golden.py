"""Check that a change keeps every output byte: make a list before and after, and print the differences.

    python tools/golden.py -o before.txt            # about three minutes of one free core
    python tools/golden.py -o after.txt
    python tools/golden.py --compare before.txt after.txt

Converts tiny random checkpoints in every way that the command line has, and lists a sha256 for each file made and each
text printed: `CASE/FILE`, `CASE!stdout`, `CASE!exit` (exit code and error). `golden_cases.py` has the commands.
Only the command line and the public names of both packages are used, so internal code may change freely. A list is only
valid on one machine, because bytes depend on the CPU's type and on the packages' versions.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_ENVIRONMENT = {
    # Use the packages of this source tree, not installed ones.
    "PYTHONPATH": os.pathsep.join(str(_ROOT / name) for name in ("converter", "runtime", "schemas")),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "120",
    "NO_COLOR": "1",
}


def take(pattern: str, model: Path | None, work: Path) -> tuple[str, int]:
    """Run the cases in a process with fixed threads.

    Args:
        pattern: Regular expression that a case's name must match somewhere.
        model: A real checkpoint file, for a shorter set on it; None for the tiny ones.
        work: Empty folder for all outputs.

    Returns:
        The list, and the exit code: 1 if a case did not end as expected.
    """
    target = work / "list.txt"
    command = [sys.executable, str(Path(__file__).with_name("golden_worker.py")), pattern, str(target)]
    command += [] if model is None else [str(model.resolve())]
    found = subprocess.run(command, cwd=work, env={**os.environ, **_ENVIRONMENT}, check=False)  # noqa: S603 - no shell
    if not target.exists():
        sys.exit("error: the run ended before its list was written")
    return target.read_text(encoding="utf-8"), found.returncode


def compare(old: Path, new: Path, pattern: str = "") -> int:
    """Print names that match a pattern and have different lines, case by case; return the exit code."""
    before, after = (dict(line.split("  ") for line in path.read_text("utf-8").splitlines()) for path in (old, new))
    names = sorted(name for name in before.keys() | after.keys() if re.search(pattern, name))
    differing = [name for name in names if before.get(name) != after.get(name)]
    case = ""
    for name in differing:
        if (group := name.replace("!", "/").partition("/")[0]) != case:
            case = group
            print(case)
        word = "only before" if name not in after else "only after" if name not in before else "changed"
        print(f"  {word:11}  {name}")
    print(f"{len(differing)} of {len(names)} lines differ")
    return 1 if differing else 0


def main() -> int:
    """Parse the options; make a list or compare two lists; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="write the list to this file instead of standard output")
    parser.add_argument("-k", "--pattern", default="", help="only what matches this regular expression")
    parser.add_argument("--model", type=Path, help="a real checkpoint file: run a shorter set on it instead")
    parser.add_argument("--work", type=Path, help="new folder for all that is made; it stays, to look at a difference")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="print what differs; exit code 1")
    options = parser.parse_args()
    if options.compare:
        old, new = options.compare
        return compare(old, new, options.pattern)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) if options.work is None else options.work
        work.mkdir(parents=True, exist_ok=options.work is None)
        content, code = take(options.pattern, options.model, work.resolve())
    if options.output is None:
        sys.stdout.write(content)
    else:
        options.output.write_text(content, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
