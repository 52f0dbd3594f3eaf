"""Measures what the README shows of a few commands: size, loss, speed against the original, and an answer.

Each artifact is made by the command line that the README prints, with the built-in calibration text. KL is exact, on
another text, and measured on the graph that is served. Speed is `curconvert bench --against` the original: the two
take turns. Answers are greedy.

Figures that the results of the same setting hold are not measured again.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.common import Result
from benchmarks.fidelity import Yardstick, figures, text_arguments, text_setting
from curconvert import CalibrationOptions
from curconvert_runtime import load

ORIGINAL = "export"
"""Writes the original as an artifact, in float32."""
COMMANDS = (
    "--keep 0.9",
    "--method dense --quantize int8",
    "--method dense --bits-per-weight 4.75",
    "--method dense --quantize int4",
)
"""Options of a conversion."""
PROMPT = "Photosynthesis is the process by which"


def curconvert(*arguments: str) -> str:
    """Run the command line and return what it prints."""
    command = [sys.executable, "-m", "curconvert", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def answer(artifact: Path, given: Namespace) -> str:
    """Return the text that an artifact appends to the prompt."""
    length = ("--max-new-tokens", str(given.new_tokens))
    (completion,) = json.loads(curconvert("generate", str(artifact), "--prompt", given.prompt, *length, "--json"))
    return " ".join(str(completion["text"]).split())


def speed(artifact: Path, original: Path, given: Namespace) -> dict[str, Any]:
    """Return tokens per second and how many times as fast as the original's that is."""
    asked = ("--threads", str(given.threads), "--rounds", str(given.rounds), "--json", "--quiet")
    found = json.loads(curconvert("bench", str(artifact), "--against", str(original), *asked))
    (row,) = found["rows"]
    return {
        "decode": row["artifact"]["decode"], "decode_ratio": row["ratios"]["decode"],
        "prefill_ratio": row["ratios"]["prefill"], "decode_original": row["against"]["decode"],
    }  # fmt: skip


def quality(artifact: Path, yardstick: Yardstick, given: Namespace) -> dict[str, Any]:
    """Return the size in bytes, the loss on the text, and the answer."""
    size = (artifact / "model.safetensors").stat().st_size
    return {"bytes": size, "answer": answer(artifact, given), **figures(yardstick.fidelity(load(artifact)))}


def main() -> None:
    """Convert, measure."""
    given = arguments()
    setting = text_setting(given, CalibrationOptions(source=given.calibration)) | {
        "continued prompt": given.prompt, "answers": f"greedy, {given.new_tokens} tokens",
        "speed": f"prompt of 128 tokens, 64 generated, {given.rounds} rounds in turn with the original",
    }  # fmt: skip
    result = Result(given.out, setting, given.threads)
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        yardstick = Yardstick(Path(folder), given)
        for options in (ORIGINAL, *COMMANDS):
            out = yardstick.path if options == ORIGINAL else made(options, given)
            known = result.find("artifacts", options=options) or {}
            if "quality" in given.parts and "kl" not in known:
                known = known | quality(out, yardstick, given)
                result.add("artifacts", known, options=options)
            if "speed" in given.parts and "decode" not in known and options != ORIGINAL:
                result.add("artifacts", known | speed(out, yardstick.path, given), options=options)


def made(options: str, given: Namespace) -> Path:
    """Return the folder of the artifact with these options; make the artifact if it does not exist."""
    out: Path = given.scratch / options.replace(" ", "").strip("-")
    if not out.exists():
        curconvert(str(given.model), "-o", str(out), *shlex.split(options), "--quiet")
    return out


def arguments() -> Namespace:
    """Read the command line."""
    parser = text_arguments("overview", __doc__)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--parts", nargs="+", default=["quality", "speed"], choices=["quality", "speed"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
