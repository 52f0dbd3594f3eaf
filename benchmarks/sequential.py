"""What `--sequential` changes: the same matrices, ranks and calibration text, with the rule and without.

KL is exact: the original runs through its own exported graph on the same text. Differences are paired: window by window
of the text, with the standard error of their mean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import MODEL, MODEL_NAME, machine, publish, table
from numpy.typing import NDArray
from quality import Recorded

from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert, export
from curconvert.allocation.budgets import options_for_size
from curconvert.checkpoint import open_checkpoint
from curconvert.planning import total_parameters
from curconvert_runtime import load
from curconvert_runtime.artifact import Artifact
from curconvert_runtime.fidelity import exact_fidelity, text_windows
from curconvert_runtime.session import Session

PAPER_DENSITY = 0.4228
"""Of q/k/gate in nine layers: the size of C·U·R at the paper's rank 128, as benchmarks/paper_setting.py finds it."""
PAPER = "q/k/gate of 9 layers"
WHOLE = "all linears, 0.9 of all parameters"
HEADER = ["matrices", "method", "parameters", "rule", "KL", "difference, paired", "perplexity", "conversion, s"]


def main() -> None:
    """Convert, measure, publish."""
    options = arguments()
    source = SourceOptions(options.model)
    calibration = CalibrationOptions(source=options.calibration, sequences=options.sequences)
    checkpoint = open_checkpoint(options.model)
    settings = [(PAPER, method) for method in options.paper] + [(WHOLE, method) for method in options.whole]

    def chosen(where: str, method: str, sequential: bool) -> ConvertOptions:
        values = {"calibration": calibration, "sequential": sequential}
        if where == WHOLE:
            return options_for_size(checkpoint, method, int(0.9 * total_parameters(checkpoint)), **values)
        size = {"rank": 128} if method == "cur" else {"density": PAPER_DENSITY}
        return ConvertOptions.for_method(method, **size, **values)

    rows = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        export(source, folder / "original")
        text = options.text.read_text(encoding="utf-8")
        windows = text_windows(Artifact.open(folder / "original"), text, options.window, options.max_tokens)
        original = Recorded(load(folder / "original", graph="portable"), windows, folder / "logits")
        for where, method in settings:
            before: NDArray[np.float64] | None = None
            for sequential in (False, True):
                wanted, start = chosen(where, method, sequential), time.perf_counter()
                result = convert(source, folder / "out", wanted, overwrite=True, verification=None)
                seconds = time.perf_counter() - start
                assert result.plan is not None
                kl, perplexity = measured(load(folder / "out", graph="portable"), original, windows)
                rows.append([
                    where, f"`{method}`", f"{result.plan.parameters_after:,}", "`--sequential`" if sequential else "–",
                    f"{kl.mean():.4f}", "–" if before is None else spread(kl - before), f"{perplexity:.2f}",
                    f"{seconds:.0f}",
                ])  # fmt: skip
                print(*rows[-1], file=sys.stderr, flush=True)
                before = kl
    publish(
        "sequential",
        f"""{MODEL_NAME}, float32. Calibration: {calibration.sequences} × {calibration.tokens_per_sequence} tokens of
{Path(options.calibration).name}. Text: {options.text.name}, {len(windows)} windows of {options.window} tokens; KL in
nats, exact over the whole vocabulary; ± standard error over windows. {machine()}.

{table(HEADER, rows)}

Made by `python benchmarks/sequential.py --text {options.text.name} --calibration {Path(options.calibration).name}`.
""",
    )


def measured(session: Session, original: Recorded, windows: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Return the mean KL of each window, and the perplexity over all of them."""
    found = [exact_fidelity(session, original, row[None]) for row in windows]
    perplexity = np.exp(np.mean([np.log(f.perplexity_compressed) for f in found]))  # windows have one length
    return np.array([f.kl.mean for f in found]), float(perplexity)


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
    parser.add_argument("--paper", nargs="*", default=["cur", "svd-llm", "pifa"], help=f"methods on {PAPER}")
    parser.add_argument("--whole", nargs="*", default=["svd-llm", "row-id", "pifa"], help=f"methods on {WHOLE}")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=24 * 512)
    parser.add_argument("--scratch", type=Path, help="folder for temporary files; the original's logits take gigabytes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
