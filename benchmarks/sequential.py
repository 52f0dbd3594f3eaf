"""What `--sequential` changes: the same matrices, ranks and calibration text, with the rule and without.

KL is exact: the original runs through its own exported graph on the same text. Differences are paired: window by window
of the text, with the standard error of their mean. What stands in `--results` is not measured again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import MODEL, MODEL_NAME, ROOT, machine, publish, table
from numpy.typing import NDArray
from quality import Recorded, Results

from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert, export
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import total_parameters
from curconvert.methods.core.options import options_for_size
from curconvert_runtime import load
from curconvert_runtime.checks.fidelity import exact_fidelity, text_windows
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.session import Session

PAPER_DENSITY = 0.4228
"""Of q/k/gate in nine layers: the size of C·U·R at the paper's rank 128, as benchmarks/paper_setting.py finds it."""
PAPER = "q/k/gate of 9 layers"
WHOLE = "all linears, 0.9 of all parameters"
RULES = ("–", "`--sequential`")
HEADER = ["matrices", "method", "parameters", "rule", "KL", "difference, paired", "perplexity", "conversion, s"]


def main() -> None:
    """Convert, measure, publish."""
    options = arguments()
    source = SourceOptions(options.model)
    calibration = CalibrationOptions(source=options.calibration, sequences=options.sequences)
    checkpoint = open_checkpoint(options.model)
    cases = [(PAPER, method) for method in options.paper] + [(WHOLE, method) for method in options.whole]

    def chosen(where: str, method: str, sequential: bool) -> ConvertOptions:
        values = {"calibration": calibration, "sequential": sequential}
        if where == WHOLE:
            return options_for_size(checkpoint, method, int(0.9 * total_parameters(checkpoint)), **values)
        size = {"rank": 128} if method == "cur" else {"density": PAPER_DENSITY}
        return ConvertOptions.for_method(method, **size, **values)

    setting = {
        "calibration": f"{calibration.sequences} × {calibration.tokens_per_sequence} tokens of "
        f"{Path(options.calibration).name}",
        "text": f"{options.text.name}, {options.max_tokens // options.window} windows of {options.window} tokens",
    }
    results = Results(options.results, setting)
    wanted = [(where, method, rule) for where, method in cases for rule in RULES]
    missing = [case for case in wanted if not results.has(", ".join(case), 0, "windows")]
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder = Path(temporary)
        if missing:
            export(source, folder / "original")
            text = options.text.read_text(encoding="utf-8")
            windows = text_windows(Artifact.open(folder / "original"), text, options.window, options.max_tokens)
            original = Recorded(load(folder / "original", graph="portable"), windows, folder / "logits")
        for where, method, rule in missing:
            start = time.perf_counter()
            asked = chosen(where, method, rule != RULES[0])
            result = convert(source, folder / "out", asked, overwrite=True, verification=None)
            seconds = time.perf_counter() - start
            assert result.plan is not None
            found = measured(load(folder / "out", graph="portable"), original, windows)
            name = ", ".join((where, method, rule))
            point = {"method": name, "target": 0, "parameters": result.plan.parameters_after}
            results.add({**point, "seconds": seconds, **found})
            print(point, np.mean(found["windows"]), found["perplexity"], seconds, file=sys.stderr, flush=True)
    rows = []
    for where, method in cases:
        pair = [results.points[", ".join((where, method, rule)), 0] for rule in RULES]
        plain = np.array(pair[0]["windows"])
        for rule, point in zip(RULES, pair, strict=True):
            kl = np.array(point["windows"])
            rows.append([
                where, f"`{method}`", f"{point['parameters']:,}", rule, f"{kl.mean():.4f}",
                "–" if rule == RULES[0] else spread(kl - plain), f"{point['perplexity']:.2f}",
                f"{point['seconds']:.0f}",
            ])  # fmt: skip
    publish(
        "sequential",
        f"""{MODEL_NAME}, float32. Calibration: {setting["calibration"]}.
Text: {setting["text"]}; KL in nats, exact over the whole vocabulary; ± standard error over windows.
{machine()}.

{table(HEADER, rows)}

Made by `python benchmarks/sequential.py --text {options.text.name} --calibration {Path(options.calibration).name}
--sequences {calibration.sequences} --paper {" ".join(options.paper)} --whole {" ".join(options.whole)}`.
""",
    )


def measured(session: Session, original: Recorded, windows: NDArray[np.int64]) -> dict[str, Any]:
    """Return the mean KL of each window, and the perplexity over all of them."""
    found = [exact_fidelity(session, original, row[None]) for row in windows]
    perplexity = np.exp(np.mean([np.log(f.perplexity_compressed) for f in found]))  # windows have one length
    return {"windows": [f.kl.mean for f in found], "perplexity": float(perplexity)}


def spread(differences: NDArray[np.float64]) -> str:
    """Format mean ± standard error."""
    return f"{differences.mean():+.4f} ± {differences.std(ddof=1) / np.sqrt(len(differences)):.4f}"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--calibration", required=True, help="another text than the evaluation's")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--paper", nargs="*", default=["cur", "pifa"], help=f"methods on {PAPER}")
    parser.add_argument("--whole", nargs="*", default=["svd-llm", "row-id", "pifa"], help=f"methods on {WHOLE}")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=24 * 512)
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "benchmarks" / "sequential.jsonl")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files; the original's logits take gigabytes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
