"""The options that commands share, and the objects that they become. Imports what is slow inside functions only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from curconvert.options.targets import LINEARS

_Command = Callable[..., None]


class FilePath(click.Path):
    """A path in which `~` is the home folder, also where a shell leaves that to us (`--output=~/out`)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, which need not exist."""
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            self.fail(f"{value}: {error}", param, ctx)


def _stacked(*decorators: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Make one decorator of several; the help shows the last one first."""

    def decorate(function: _Command) -> _Command:
        for decorator in decorators:
            function = decorator(function)
        return function

    return decorate


def _pairs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r}: expected key=value")
    return dict(value.split("=", 1) for value in values)


source_options = _stacked(
    click.option("--revision", help="Branch, tag or commit of a hub id."),
    click.option(
        "--config-set", multiple=True, metavar="KEY=VALUE", callback=_pairs, help="Set or override a config value."
    ),
    click.option("--config", type=FilePath(), help="config.json for a lone file that has none beside it."),
    click.argument("model"),
)


calibration_options = _stacked(
    click.option("--seed", type=int, help="Seed of every random choice. [0]"),
    click.option("--probe-sequences", type=int, help="Sequences held out for verification. [16]"),
    click.option("--calibration-tokens", type=int, help="Tokens of a calibration sequence. [128]"),
    click.option("--calibration-sequences", type=int, help="Calibration sequences at most. [128]"),
    click.option("--text-field", help="Field of a JSONL line that holds the text. [text]"),
    click.option(
        "--calibration",
        metavar="SOURCE",
        help="builtin, a text or .jsonl file, or .safetensors token ids. [builtin]",
    ),
)


numeric_options = _stacked(
    click.option(
        "--self-text", type=float, help="Share of the calibration sequences that the model writes. [auto: 0.5, else 0]"
    ),
    click.option("--ridge", type=float, help="Ridge wherever a Gram matrix is solved with. [0.01]"),
    click.option("--rank-multiple", type=int, help="auto: ranks and neurons are multiples of it. [16]"),
    click.option("--dtype", help="float32, float16 or bfloat16; default: the checkpoint's, float16 for cuda."),
    click.option("--device", help="cpu, or cuda or cuda:N for forward passes and large products. [cpu]"),
)


quantization_options = _stacked(
    click.option("--asymmetric", is_flag=True, help="A zero point for each block."),
    click.option("--block-size", type=int, help="Numbers that share a scale: 32, 64 or 128. [int4: 64, int8: 32]"),
    click.option(
        "--bits-per-weight",
        type=float,
        help="int4 or int8 for each matrix by what rounding it costs, within so many bits a number, scales included.",
    ),
    click.option("--quantize", metavar="TYPE", help="int8 or int4: factors, dense matrices, embedding and head."),
)


method_options = _stacked(
    calibration_options,
    click.option(
        "--rounding",
        help="gptq (by the inputs on the calibration text) or nearest, where something is quantized. [gptq]",
    ),
    quantization_options,
    click.option("--target", help="cpu, or cuda: float16 weights and products, for a GPU. [cpu]"),
    click.option(
        "--share/--no-share",
        default=None,
        help="auto: one basis for neighboring layers where that is predicted to pay. [no]",
    ),
    click.option(
        "--scored", is_flag=True, help="auto: also write what `resize` needs to cut the artifact to any smaller size."
    ),
    click.option(
        "--sequential/--no-sequential",
        default=None,
        help="Calibrate on the compressed model so far, and make up for what it has lost. Not for auto. [no]",
    ),
    click.option(
        "--form",
        "stored",
        help="How C, U and R are stored and served: cur (as they are), folded (C·U and R), interpolative (rows and "
        "coefficients), or auto (the smallest for each matrix). [cur]",
    ),
    click.option("--link", help="Metric of U: plain, diagonal or full."),
    click.option("--importance", help="Matrix to select on: output, wanda, activation or weight."),
    click.option("--select", "selector", help="Rows and columns by deim, qdeim, qr, lu, leverage or random."),
    click.option("--exact-svd", is_flag=True, help="Full SVD for deim, qdeim and leverage: slow, and CURing's own."),
    click.option("--steps", type=int, help="soco: steps of learning. [200]"),
    click.option("--targets", help=f"all, or some of {','.join(LINEARS)}."),
    click.option(
        "--layers", help="angular[:N], influence[:N], rank[:N], all, or numbers and ranges such as 3,8-12. [angular]"
    ),
    click.option("--target-bytes", type=int, help="auto, soco: size of the weights' file at most."),
    click.option(
        "--target-params", "target_parameters", type=int, help="auto, soco: parameters of the whole model at most."
    ),
    click.option("--keep", type=float, help="auto, soco: share of all parameters to keep, embedding included. [0.9]"),
    click.option("--density", type=float, help="Largest share of a matrix's numbers to keep, instead of --rank."),
    click.option("--rank", type=int, help="Largest rank, or neurons to keep. [128; neurons, modegpt: --density 0.75]"),
    click.option(
        "--method",
        help="auto: sizes by what each matrix is worth, the default with --keep, --target-params, --target-bytes "
        "or --max-kl; cur, the default otherwise; curing (the paper, arXiv 2501.04211, exactly); row-id or pifa "
        "(interpolative storage); svd-llm, asvd, fwsvd or svd (two factors); neurons (a smaller MLP); "
        "modegpt (smaller MLP and attention heads); soco (learned sizes, with the model in memory); "
        "dense (nothing gets smaller, for --quantize).",
    ),
    numeric_options,
)


heal_options = _stacked(
    click.option("--seed", type=int, help="Seed of the order of the sequences, and of which are taken. [0]"),
    click.option("--probe-sequences", type=int, help="Sequences held out, to end training by. [16]"),
    click.option("--data-tokens", type=int, help="Tokens of a sequence, or of a task's longest line. [128]"),
    click.option("--data-sequences", type=int, help="Training sequences at most. [8192]"),
    click.option("--text-field", help="Field of a JSONL line that holds the text. [text]"),
    click.option(
        "--data",
        metavar="SOURCE",
        help="builtin, a text or .jsonl file, or .safetensors token ids; with --objective ce a .jsonl file. [builtin]",
    ),
    click.option(
        "--checkpointing", is_flag=True, help="Less memory for more time: compute activations again on the way back."
    ),
    click.option("--patience", type=int, help="Measurements without a better one before training ends. [5]"),
    click.option("--evaluate-every", type=int, help="Steps between measurements, which are also kept to resume. [50]"),
    click.option("--warmup", type=int, help="Steps in which the learning rate rises. [100]"),
    click.option("--learning-rate", type=float, help="The highest; it falls along a cosine. [3e-4]"),
    click.option("--accumulate", type=int, help="Parts that a batch is computed in. [1]"),
    click.option("--batch", type=int, help="Sequences of a step. [16]"),
    click.option("--steps", type=int, help="Steps of AdamW at most; with --mode blocks for each block. [2000]"),
    click.option("--kl", type=float, help="Weight of KL(original ‖ healed). [0]"),
    click.option("--ce", type=float, help="Weight of the cross-entropy. [distill: 0.1, ce: 1]"),
    click.option("--hidden", type=float, help="Weight of the hidden states' mean squared error. [distill: 0.9, ce: 0]"),
    click.option(
        "--start", help="none, or als: linking factors by least squares first, then --steps, which may be 0. [none]"
    ),
    click.option("--mode", help="whole: the model as one; blocks: each by itself, one in memory. [whole]"),
    click.option(
        "--objective",
        help="distill: back to the original, on running text; ce: a task, from a .jsonl file of prompts and "
        "completions or texts. [distill]",
    ),
    click.option("--train", help="u: linking factors; u+norms: the norms' scales too. [u]"),
)


def to_healing(values: dict[str, Any]) -> Any:
    """Build the options of `heal`; what is not given keeps its default."""
    from curconvert.options.heal import SEQUENCES, HealOptions

    data = _text(values, "data", "data_sequences", "data_tokens", sequences=SEQUENCES)
    return HealOptions.for_objective(values.pop("objective"), data=data, **values)


def to_calibration(values: dict[str, Any]) -> Any:
    """Take the calibration's options out of a command's."""
    return _text(values, "calibration", "calibration_sequences", "calibration_tokens")


def _text(values: dict[str, Any], source: str, sequences: str, tokens: str, /, **defaults: int) -> Any:
    """Take the options of a text out of a command's, which name them in their own way."""
    from curconvert.options.calibration import CalibrationOptions

    found = {
        "source": values.pop(source),
        "text_field": values.pop("text_field"),
        "sequences": values.pop(sequences),
        "tokens_per_sequence": values.pop(tokens),
        "probe_sequences": values.pop("probe_sequences"),
        "seed": values["seed"],
    }
    return CalibrationOptions(**{**defaults, **{name: value for name, value in found.items() if value is not None}})


def to_quantization(values: dict[str, Any]) -> Any:
    """Take the quantization's options out of a command's; None where nothing shall be quantized."""
    from curconvert.options.quantization import Quantization

    return Quantization.of(
        values.pop("quantize"), values.pop("block_size"), values.pop("asymmetric"), values.pop("rounding", None),
        values.pop("bits_per_weight"),
    )  # fmt: skip


def to_options(values: dict[str, Any], max_kl: float | None = None) -> Any:
    """Make a conversion's options of those of a command; `max_kl` counts where no size is given."""
    from curconvert.methods.core.method import SIZES
    from curconvert.methods.core.options import ConvertOptions
    from curconvert.methods.core.registry import method_named
    from curconvert.options.targets import parse_targets

    targets, method = values.pop("targets"), values.pop("method")
    searches = method is None or "max_kl" in method_named(method).sizes
    if searches and all(values.get(size) is None for size in SIZES):
        values["max_kl"] = max_kl  # instead of a size: the smallest model within it
    return ConvertOptions.for_method(
        method,
        calibration=to_calibration(values),
        quantization=to_quantization(values),
        targets=None if targets is None else parse_targets(targets),
        **values,
    )


def to_source(model: str, config: Path | None, config_set: dict[str, str], revision: str | None) -> Any:
    """Make the source's options of those of a command."""
    from curconvert.options.source import SourceOptions

    return SourceOptions(model, config, config_set, revision)


def to_execution(executor: str, workers: int | None, memory_limit: int | None) -> Any:
    """Make the execution's options of those of a command."""
    from curconvert.options.execution import ExecutionOptions

    return ExecutionOptions(executor, workers, memory_limit)


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in later versions only
    """Bytes: 4GB, 500MB, 1.5GiB or a plain number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse it."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", value.strip().lower())
        if match is None:
            self.fail(f"{value!r}: expected a size such as 4GB or 500MiB", param, ctx)
        number, prefix, binary = match.groups()
        return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))


execution_options = _stacked(
    click.option(
        "--memory-limit",
        type=Size(),
        help="Most resident memory, as `plan` estimates it (4GB); hidden states go to the disk for it. [no limit]",
    ),
    click.option("--workers", type=int, help="Matrices factorized at the same time. [the cores at hand]"),
    click.option(
        "--executor",
        default="local",
        show_default=True,
        help="Where matrices are factorized: local, ray (a cluster for this run) or ray://HOST:PORT. Same bytes.",
    ),
)


thresholds = _stacked(
    click.option(
        "--max-parity",
        type=float,
        default=1e-3,
        show_default=True,
        help="Largest |Δlogit| between graphs and torch.",
    ),
    click.option("--max-ppl-ratio", type=float, help="Largest perplexity(compressed) / perplexity(original)."),
    click.option("--min-top1", type=float, help="Smallest share of equal most likely tokens."),
    click.option("--max-kl", type=float, help="Largest mean KL(original ‖ compressed), nats per token."),
)
