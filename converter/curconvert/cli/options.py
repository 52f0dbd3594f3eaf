"""The options that commands share, and the objects that they become. Imports what is slow inside functions only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from curconvert.cli.streams import typed
from curconvert.options.targets import LINEARS

_Command = Callable[..., None]


class FilePath(click.Path):
    """A path in which `~` means the home folder, even where the shell does not expand it (`--output=~/out`)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, which need not exist."""
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            self.fail(f"{value}: {error}", param, ctx)


class Typed(click.ParamType):  # type: ignore[type-arg]  # generic in later versions only
    """A text as the user typed it, also where the locale knows ASCII only."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        return typed(value)


def _stacked(*decorators: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Return one decorator that applies several in order; the help shows the last option first."""

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


base_option = click.option(
    "--base", metavar="MODEL", help="The model that an adapter (LoRA, DoRA) changes. The adapter is merged into it."
)


source_options = _stacked(
    base_option,
    click.option("--revision", help="Branch, tag or commit of a model on the hub."),
    click.option(
        "--config-set",
        type=Typed(),
        multiple=True,
        metavar="KEY=VALUE",
        callback=_pairs,
        help="Set or override a value of config.json. Repeat for more.",
    ),
    click.option(
        "--ignore",
        multiple=True,
        metavar="PATTERN",
        help="Leave out stored tensors that the model does not know, such as 'mtp.*'. Repeat for more.",
    ),
    click.option("--config", type=FilePath(), help="config.json to use instead of the model's own."),
    click.argument("model"),
)


_begin_option = click.option(
    "--begin/--no-begin",
    default=None,
    help="Start each sequence of the text with the begin token, if the tokenizer adds one. [yes]",
)


calibration_options = _stacked(
    _begin_option,
    click.option("--seed", type=int, help="Seed of all random choices. [0]"),
    click.option("--probe-sequences", type=int, help="Sequences held out to verify the result. [16]"),
    click.option("--calibration-tokens", type=int, help="Tokens in each calibration sequence. [128]"),
    click.option("--calibration-sequences", type=int, help="Maximum number of calibration sequences. [128]"),
    click.option("--text-field", type=Typed(), help="Field that holds the text in each record. [text]"),
    click.option(
        "--calibration",
        metavar="SOURCE",
        help="Calibration text: builtin, a text, .jsonl or .parquet file, or a .safetensors file of token ids. "
        "Conversations go through the chat template. [builtin]",
    ),
)


numeric_options = _stacked(
    click.option(
        "--self-text",
        type=float,
        help="Share of the calibration sequences that the model generates itself. [auto: 0.5; others: 0]",
    ),
    click.option(
        "--ridge", type=float, help="Ridge for each solve with a Gram matrix, relative to its diagonal. [0.01]"
    ),
    click.option(
        "--rank-multiple", type=int, help="auto, soco: round ranks and neuron counts to a multiple of this. [16]"
    ),
    click.option(
        "--dtype", help="Stored dtype: float32, float16 or bfloat16. [the checkpoint's; --target cuda: float16]"
    ),
    click.option("--device", help="Device for forward passes and large matrix products: cpu, cuda or cuda:N. [cpu]"),
)


quantization_options = _stacked(
    click.option("--asymmetric", is_flag=True, help="Store a zero point for each block."),
    click.option("--block-size", type=int, help="Weights that share a scale: 32, 64 or 128. [int8: 32; others: 64]"),
    click.option("--scale-dtype", help="Stored dtype of scales: float16 or float32. [float16]"),
    click.option(
        "--bits-per-weight",
        type=float,
        help="Choose int3 to int8 for each matrix, within this average of bits per weight. Scales count.",
    ),
    click.option(
        "--quantize", metavar="TYPE", help="Store factors, dense matrices, embedding and lm_head as int3 to int8."
    ),
)


method_options = _stacked(
    calibration_options,
    click.option(
        "--rounding",
        help="How to quantize: gptq (minimize output error on the calibration text) or nearest. [gptq]",
    ),
    quantization_options,
    click.option("--target", help="Where the artifact will run: cpu, or cuda (float16 weights and products). [cpu]"),
    click.option(
        "--share/--no-share",
        default=None,
        help="auto: let neighboring layers share a basis where the predicted loss is lower. [no]",
    ),
    click.option(
        "--scored", is_flag=True, help="auto: also write the scores that `resize` needs to cut to a smaller size."
    ),
    click.option(
        "--sequential/--no-sequential",
        default=None,
        help="Calibrate each block on the outputs of the compressed blocks before it. Not for auto, soco. [no]",
    ),
    click.option(
        "--form",
        "stored",
        help="How to store C, U and R: cur (three factors), folded (C·U and R), interpolative (rows and "
        "coefficients), or auto (the smallest for each matrix). [cur]",
    ),
    click.option("--link", help="Metric in which U is optimal: plain, diagonal or full. [cur: full; curing: plain]"),
    click.option(
        "--importance",
        help="Matrix to select rows and columns on: output, wanda, activation or weight. [cur: output; curing: wanda]",
    ),
    click.option(
        "--select",
        "selector",
        help="How to select rows and columns: deim, qdeim, qr, lu, leverage or random. [cur: qr; curing: deim]",
    ),
    click.option(
        "--exact-svd", is_flag=True, help="Use a full SVD for deim, qdeim and leverage, as the CURing paper does. Slow."
    ),
    click.option("--steps", type=int, help="soco: training steps. [200]"),
    click.option("--targets", help=f"Matrices to compress: all, or some of {','.join(LINEARS)}. [by method]"),
    click.option(
        "--layers",
        help="Layers to compress: all, numbers and ranges such as 3,8-12, or N chosen by a score: angular[:N], "
        "influence[:N], rank[:N]. [angular]",
    ),
    click.option("--target-bytes", type=int, help="auto, soco: maximum size of the weight file, in bytes."),
    click.option(
        "--target-params", "target_parameters", type=int, help="auto, soco: maximum parameters of the whole model."
    ),
    click.option("--keep", type=float, help="auto, soco: share of all parameters to keep, embedding included. [0.9]"),
    click.option(
        "--density", type=float, help="Maximum share of the parameters of each matrix to keep. Replaces --rank."
    ),
    click.option(
        "--rank",
        type=int,
        help="Maximum rank; for neurons, the number of neurons to keep. [128; neurons, modegpt: --density 0.75]",
    ),
    click.option(
        "--method",
        help="auto (sizes chosen per matrix), cur, curing (the paper, arXiv 2501.04211), row-id or pifa (interpolative "
        "storage), svd-llm, asvd, fwsvd or svd (two factors), neurons (fewer MLP neurons), modegpt (fewer MLP neurons "
        "and head dimensions), soco (trained sizes; needs the model in memory), dense (for --quantize). "
        "[auto with --keep, --target-params, --target-bytes or --max-kl; otherwise cur]",
    ),
    numeric_options,
)


heal_options = _stacked(
    _begin_option,
    click.option("--seed", type=int, help="Seed that selects and orders the sequences. [0]"),
    click.option("--probe-sequences", type=int, help="Held-out sequences that decide when training stops. [16]"),
    click.option("--data-tokens", type=int, help="Tokens in each sequence; for a task, the maximum per line. [128]"),
    click.option("--data-sequences", type=int, help="Maximum number of training sequences. [8192]"),
    click.option("--text-field", type=Typed(), help="Field that holds the text in each record. [text]"),
    click.option(
        "--data",
        metavar="SOURCE",
        help="Training text: the kinds of files that `convert --calibration` takes. --objective ce needs "
        "a .jsonl file. [builtin]",
    ),
    click.option(
        "--checkpointing", is_flag=True, help="Recompute activations in the backward pass: less memory, more time."
    ),
    click.option("--patience", type=int, help="Stop after this number of evaluations without improvement. [5]"),
    click.option(
        "--evaluate-every",
        type=int,
        help="Steps between evaluations. Each one also saves the state for a resumed run. [50]",
    ),
    click.option("--warmup", type=int, help="Steps over which the learning rate rises. [100]"),
    click.option("--learning-rate", type=float, help="Peak learning rate, followed by cosine decay. [3e-4]"),
    click.option(
        "--accumulate", type=int, help="Number of parts to split each batch into. More parts need less memory. [1]"
    ),
    click.option("--batch", type=int, help="Sequences per step. [16]"),
    click.option("--steps", type=int, help="Maximum AdamW steps; with --mode blocks, for each block. [2000]"),
    click.option("--kl", type=float, help="Weight of KL(original ‖ healed) in the loss. [0]"),
    click.option("--ce", type=float, help="Weight of the cross-entropy in the loss. [distill: 0.1; ce: 1]"),
    click.option(
        "--hidden", type=float, help="Weight of the mean squared error of the hidden states. [distill: 0.9; ce: 0]"
    ),
    click.option(
        "--start",
        help="als: initialize the linking factors by least squares; --steps may then be 0. none: start from the "
        "artifact. [none]",
    ),
    click.option("--mode", help="whole: train the whole model; blocks: train one block at a time in memory. [whole]"),
    click.option(
        "--objective",
        help="distill: match the original on plain text; ce: learn a task from a .jsonl file of prompts and "
        "completions, or of texts. [distill]",
    ),
    click.option("--train", help="u: train the linking factors; u+norms: also the scales of the norms. [u]"),
)


def to_healing(values: dict[str, Any]) -> Any:
    """Return the options of `heal` from option values; those not given keep their defaults."""
    from curconvert.options.heal import SEQUENCES, HealOptions

    data = _text(values, "data", "data_sequences", "data_tokens", sequences=SEQUENCES)
    return HealOptions.for_objective(values.pop("objective"), data=data, **values)


def to_calibration(values: dict[str, Any]) -> Any:
    """Return the calibration options, removed from a command's option values."""
    return _text(values, "calibration", "calibration_sequences", "calibration_tokens")


def _text(values: dict[str, Any], source: str, sequences: str, tokens: str, /, **defaults: int) -> Any:
    """Return the options of a text, removed from a command's option values under the given names."""
    from curconvert.options.calibration import CalibrationOptions

    found = {
        "source": values.pop(source),
        "text_field": values.pop("text_field"),
        "sequences": values.pop(sequences),
        "tokens_per_sequence": values.pop(tokens),
        "probe_sequences": values.pop("probe_sequences"),
        "begin": values.pop("begin"),
        "seed": values["seed"],
    }
    return CalibrationOptions(**{**defaults, **{name: value for name, value in found.items() if value is not None}})


def to_quantization(values: dict[str, Any]) -> Any:
    """Return the quantization, with its options removed from a command's; None if nothing is quantized."""
    from curconvert.options.quantization import Quantization

    return Quantization.of(
        values.pop("quantize"), values.pop("block_size"), values.pop("asymmetric"), values.pop("rounding", None),
        values.pop("bits_per_weight"), values.pop("scale_dtype"),
    )  # fmt: skip


def to_options(values: dict[str, Any], max_kl: float | None = None) -> Any:
    """Return a conversion's options; without a size, `max_kl` limits the search for the smallest model."""
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


def to_source(values: dict[str, Any]) -> Any:
    """Return the source options, removed from a command's option values."""
    from curconvert.options.source import SourceOptions

    names = ("model", "config", "config_set", "revision", "ignore", "base")
    return SourceOptions(**{name: values.pop(name) for name in names})


def to_execution(executor: str, workers: int | None, memory_limit: int | None) -> Any:
    """Return the execution options."""
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
        help="Limit of estimated resident memory, such as 4GB. Hidden states move to disk if needed. [no limit]",
    ),
    click.option("--workers", type=int, help="Matrices to factorize at the same time. [the available cores]"),
    click.option(
        "--executor",
        default="local",
        show_default=True,
        help="Where to factorize: local, ray (a cluster for this run) or ray://HOST:PORT. The bytes are the same.",
    ),
)


thresholds = _stacked(
    click.option(
        "--max-parity",
        type=float,
        default=1e-4,
        show_default=True,
        help="Maximum difference between the logits of the graphs and torch, relative to the largest logit.",
    ),
    click.option("--max-ppl-ratio", type=float, help="Maximum perplexity(compressed) / perplexity(original)."),
    click.option("--min-top1", type=float, help="Minimum share of positions with the same most likely token."),
    click.option("--max-kl", type=float, help="Maximum mean KL(original ‖ compressed), in nats per token."),
)
