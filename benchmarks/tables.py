"""Defines the tables of the pages about the suite: which figures of which result each one shows."""

from __future__ import annotations

from benchmarks.cells import KL_CELL, Table, quartile_cell, span_cell

_SERVED = {"artifact": "{artifact}", "batch": "{batch}", "prompt, tokens": "{prompt}"}
_ONE_PROMPT = {"batch": (1,), "prompt": (128,)}
_QUALITY = {"method": "`{method}`", "kept": "{kept:.3f}"}
_DECODED = {"model": "{model}", "form": "{form}", "batch": "{batch}"}


def _beside(peer: str) -> Table:
    """Return how many times as long a peer takes as our runtime."""
    parts = {f"{part}, ratio": span_cell(f"{peer}[{part}]") for part in ("prefill", "decode", "start")}
    columns = {"artifact": "{artifact}", **parts, "peak memory, MB": f"{{{peer}[peak]!M:,.0f}}"}
    return Table("serving", "serving", columns, only=_ONE_PROMPT, needs=peer)


def _pages(rows: str, part: str, digits: str) -> Table:
    """Return the speed of the runtime with huge pages, and the ratios of two others, in prefill or in decode."""
    columns = {
        **_SERVED,
        "huge pages, tokens/s": span_cell(part, digits),
        "small pages, ratio": span_cell(f"small[{part}]"),
        "onnxruntime-genai, ratio": span_cell(f"genai[{part}]"),
    }
    return Table("huge_pages", rows, columns)


QUALITY = {
    "quality": Table(
        "quality",
        "points",
        {"method": "`{method}`"},
        across="{kept:.0%} kept",
        value="{kl:.3f} / {perplexity!p}",
        only={"method": ("auto", "soco", "modegpt", "neurons", "pifa", "svd-llm", "row-id", "curing")},
    ),
    "quality.kl": Table(
        "quality", "points", {"method": "`{method}`"}, across="{kept:.0%}: {target!M:.2f} M", value=KL_CELL
    ),
    "quality.perplexity": Table(
        "quality",
        "points",
        {"method": "`{method}`"},
        across="{kept:.0%}: {target!M:.2f} M",
        value="{perplexity!p} ({top1:.3f})",
    ),
    "quality.auto": Table(
        "quality",
        "auto",
        {
            "method and size": "`{option}`",
            "parameters": "{parameters:,}",
            "kept": "{kept:.3f}",
            "KL, nats": KL_CELL,
            "perplexity": "{perplexity:.2f}",
            "top-1": "{top1:.3f}",
        },
    ),
    "quality.windows": Table(
        "quality",
        "tasks",
        {
            **_QUALITY,
            "windows of 1,024, whole text": "{perplexity_1024:.2f}",
            "windows of 512, first 24,576 tokens": "{perplexity_512:.2f}",
            "windows of 128, first 24,576 tokens": "{perplexity_128:.2f}",
        },
    ),
    "quality.tasks": Table(
        "quality",
        "tasks",
        {
            **_QUALITY,
            "BLiMP, accuracy": "{blimp:.3f} ± {blimp_error:.3f}",
            "PIQA, accuracy": "{piqa:.3f} ± {piqa_error:.3f}",
        },
    ),
}
OVERVIEW = {
    "overview": Table(
        "overview",
        "artifacts",
        {
            "options": "`{options}`",
            "MB": "{bytes!M:.0f}",
            "KL, nats": "{kl:.3f}",
            "top-1": "{top1:.0%}",
            "perplexity": "{perplexity:.2f}",
            "decode speed": "{decode_ratio[median]:.1f}×",
        },
    ),
    "overview.answers": Table("overview", "artifacts", {"options": "`{options}`", "continuation": "{answer} …"}),
}
SERVING = {
    "serving": Table(
        "serving",
        "serving",
        {
            "artifact": "{artifact}",
            "prefill, tokens/s (ratio)": "{prefill[median]:.0f} ({genai[prefill][median]:.2f})",
            "decode, tokens/s (ratio)": "{decode[median]:.1f} ({genai[decode][median]:.2f})",
            "start, s (ratio)": "{start[median]:.2f} ({genai[start][median]:.2f})",
            "peak memory, MB (genai's)": "{peak!M:,.0f} ({genai[peak]!M:,.0f})",
        },
        only=_ONE_PROMPT,
        needs="genai",
    ),
    "serving.ours": Table(
        "serving",
        "serving",
        {
            "artifact": "{artifact}",
            "prefill, tokens/s": span_cell("prefill", ".0f"),
            "decode, tokens/s": span_cell("decode", ".1f"),
            "start, s": span_cell("start"),
            "peak memory, MB": "{peak!M:,.0f}",
        },
        only=_ONE_PROMPT,
    ),
    "serving.genai": _beside("genai"),
    "serving.hugetlb": _beside("hugetlb"),
    "huge_pages.prefill": _pages("serving", "prefill", ".0f"),
    "huge_pages.decode": _pages("serving", "decode", ".1f"),
    "huge_pages.idle_prefill": _pages("idle", "prefill", ".0f"),
    "huge_pages.idle_decode": _pages("idle", "decode", ".1f"),
    "huge_pages.others": Table(
        "huge_pages",
        "serving",
        {
            **_SERVED,
            "optimum: prefill": span_cell("optimum[prefill]"),
            "optimum: decode": span_cell("optimum[decode]"),
            "torch: prefill": span_cell("torch[prefill]"),
            "torch: decode": span_cell("torch[decode]"),
        },
        needs="optimum",
    ),
    "huge_pages.peaks": Table(
        "huge_pages",
        "peaks",
        {
            "artifact": "{artifact}",
            "weights read per token": "{weights!M:,.0f}",
            "huge pages": "{peak!M:,.0f}",
            **{
                name: f"{{{peer}!M:,.0f}}"
                for name, peer in {
                    "small pages": "small",
                    "onnxruntime-genai": "genai",
                    "optimum": "optimum",
                    "torch": "torch",
                }.items()
            },
        },
    ),
    "huge_pages.ranges": Table(
        "huge_pages",
        "ranges",
        {
            "before each process": "{before}",
            "compared with": "{beside}",
            "part": "{part}",
            "medians of the ratios of rounds": "{rounds[least]:.2f} to {rounds[most]:.2f}",
            "ratios of medians": "{medians[least]:.2f} to {medians[most]:.2f}",
        },
    ),
    "huge_pages.start": Table(
        "huge_pages",
        "start",
        {
            "artifact": "{artifact}",
            "threads": "{threads}",
            "default, s": span_cell("start"),
            "small pages, s": span_cell("small"),
            "huge pages, s": span_cell("huge"),
        },
    ),
    "huge_pages.start_others": Table(
        "huge_pages",
        "start",
        {
            "artifact": "{artifact}",
            "threads": "{threads}",
            "onnxruntime-genai, s": span_cell("genai"),
            "optimum, s": span_cell("optimum"),
            "onnxruntime-genai / curconvert": "{ratio:.2f}",
        },
    ),
    "decode": Table(
        "decode",
        "decode",
        {
            **_DECODED,
            "CPU time per step, ms": "{seconds!m:.1f}",
            "tokens per second of CPU time": "{tokens:.1f}",
            "speed-up": quartile_cell("speedup"),
        },
    ),
    "decode.bytes": Table(
        "decode",
        "decode",
        {
            **_DECODED,
            "read per step, MB": "{bytes!M:,.0f}",
            "share of the read bandwidth": "{bandwidth:.0%}",
            "times fewer bytes": "{bytes_say:.2f}",
            "speed-up / times fewer bytes": "{by_bytes:.2f}",
        },
    ),
    "decode.copies": Table(
        "decode",
        "decode",
        {
            **_DECODED,
            "copied at load, MB": "{copied!M:,.0f}",
            "times fewer bytes copied": "{copies_say:.2f}",
            "speed-up / times fewer bytes copied": "{by_copies:.2f}",
        },
    ),
}
QUANTIZATION = {
    "quantization": Table(
        "quantization",
        "artifacts",
        {
            "artifact": "{artifact}",
            "size, MB": "{bytes!M:.1f}",
            "KL, nats": "{kl:.3f}",
            "top-1": "{top1:.3f}",
            "perplexity": "{perplexity:.2f}",
        },
        only={
            "artifact": (
                "dense int8 32 gptq",
                "dense int4 64 gptq",
                "dense int4 64 nearest",
                "dense 5.5 bits gptq",
                "dense 6.5 bits gptq",
                "pifa int8 32 gptq",
            )
        },
    ),
    "quantization.artifacts": Table(
        "quantization",
        "artifacts",
        {
            "artifact": "{artifact}",
            "size, MB": "{bytes!M:.1f}",
            "KL, nats": "{kl:.5f} ± {kl_error:.5f}",
            "top-1": "{top1:.4f}",
            "perplexity": "{perplexity:.3f}",
            "perplexity / original's": "{ratio:.4f}",
        },
    ),
}
_SCALE = {"setting": "{setting}", "shape": "{shape}"}
_PLANNED = {"model": "{model}", "setting": "{setting}"}
CONVERSION = {
    "conversion": Table(
        "scale",
        "conversions",
        {
            **_SCALE,
            "parameters, 10⁹": "{before!G:.2f} → {after!G:.2f}",
            "minutes": "{seconds!t:.1f}",
            "peak memory, GB": "{peak!G:.1f}",
            "one block in float32, GB": "{block!G:.2f}",
        },
    ),
    "scale": Table(
        "scale",
        "conversions",
        {
            **_SCALE,
            "whole conversion": "{seconds:.0f}",
            "passes over the original": "{stages[original]:.0f}",
            "compress": "{stages[compress]:.0f}",
            "graphs, hashes, reports": "{stages[rest]:.0f}",
            "per 10⁹ parameters": "{rate:.0f}",
        },
    ),
    "scale.memory": Table(
        "scale",
        "conversions",
        {
            **_SCALE,
            "parameters, 10⁹": "{before!G:.2f} → {after!G:.2f}",
            "one block in float32, GB": "{block!G:.2f}",
            "peak memory, GB": "{peak!G:.2f}",
            "written, GB": "{written!G:.1f}",
        },
    ),
    "scale.plan": Table(
        "scale",
        "conversions",
        {
            **_SCALE,
            "`plan`, s": "{expected[seconds]:.0f}",
            "measured, s": "{seconds:.0f}",
            "`plan`, peak GB": "{expected[peak]!G:.2f}",
            "measured, peak GB": "{peak!G:.2f}",
        },
    ),
    "conversion.default": Table(
        "conversion",
        "default",
        {
            "default conversion": "{setting}",
            "time, s": "{seconds[median]:.0f} ({seconds[least]:.0f} to {seconds[most]:.0f})",
            "peak memory, MB": "{peak[median]!M:.0f} ({peak[least]!M:.0f} to {peak[most]!M:.0f})",
        },
    ),
    "conversion.depth": Table(
        "conversion",
        "depth",
        {
            "layers": "{layers}",
            "weights written, MB": "{written!M:.0f}",
            "peak memory, MB": "{peak!M:.0f}",
            "time, s": "{seconds:.0f}",
        },
    ),
    "conversion.plan": Table(
        "conversion",
        "plan",
        {
            **_PLANNED,
            "`plan`, s": "{expected[seconds]:.0f}",
            "measured, s": "{seconds:.0f}",
            "`plan` / measured": "{ratio[seconds]:.2f}",
        },
    ),
    "conversion.plan_memory": Table(
        "conversion",
        "plan",
        {
            **_PLANNED,
            "`plan`, GB": "{expected[peak]!G:.2f}",
            "measured, GB": "{peak!G:.2f}",
            "`plan` / measured": "{ratio[peak]:.2f}",
        },
        needs="peak",
    ),
    "conversion.plan_disk": Table(
        "conversion",
        "plan",
        {
            **_PLANNED,
            "temporary files: `plan`, measured, GB": "{expected[temporary]!G:.2f}, {temporary!G:.2f}",
            "`plan` / measured": "{ratio[temporary]:.2f}",
            "weights: `plan`, measured, GB": "{expected[written]!G:.3f}, {written!G:.3f}",
            "`plan` / measured, weights": "{ratio[written]:.2f}",
        },
        needs="peak",
    ),
}
CHOICE = {
    "choice.quantized": Table(
        "quantization",
        "artifacts",
        {
            "artifact": "{artifact}",
            "MB": "{bytes!M:.1f}",
            "KL": "{kl:.3f}",
            "top-1": "{top1:.3f}",
            "perplexity": "{perplexity:.2f}",
        },
        by="bytes",
        only={
            "artifact": ("dense int4 64 gptq", "dense 5.5 bits gptq", "dense 6.5 bits gptq", "dense int8 32 gptq"),
        },
    ),
    "choice.feeling": Table(
        "quantization",
        "artifacts",
        {
            "artifact": "{artifact}",
            "KL": "{kl:.3f}",
            "top-1": "{top1:.0%}",
            "perplexity over the original's": "{ratio:.2f}",
        },
        by="kl",
        only={
            "artifact": (
                "dense int8 32 nearest",
                "dense 6.5 bits gptq",
                "dense 5.5 bits gptq",
                "dense int4 64 gptq",
                "dense int4 64 nearest",
            ),
        },
    ),
    "choice.auto": Table(
        "quality",
        "points",
        {
            "`--keep`": "{kept:g}",
            "MB in float32": "{target!F:.0f}",
            "MB in 16 bits": "{target!H:.0f}",
            "KL": "{kl:.3f}",
            "top-1": "{top1:.3f}",
            "perplexity": "{perplexity:.2f}",
        },
        only={"method": ("auto",)},
    ),
    "choice.max_kl": Table(
        "quality",
        "auto",
        {
            "options": "`--method {option}`",
            "parameters kept": "{kept:.3f}",
            "MB in float32": "{parameters!F:.0f}",
            "KL": "{kl:.3f}",
            "top-1": "{top1:.3f}",
            "perplexity": "{perplexity:.2f}",
        },
        only={"option": ("auto --max-kl 0.1",)},
    ),
    "choice.methods": Table(
        "quality",
        "points",
        {
            "method": "`{method}`",
            "KL": "{kl:.3f}",
            "top-1": "{top1:.3f}",
            "perplexity": "{perplexity!p}",
        },
        by="kl",
        only={
            "kept": (0.9,),
            "method": ("auto", "neurons", "modegpt", "pifa", "row-id", "svd-llm", "cur", "curing"),
        },
    ),
    "choice.speed": Table(
        "serving",
        "serving",
        {
            "artifact": "{artifact}",
            "prefill, tokens/s": "{prefill[median]:.0f}",
            "decode, tokens/s": "{decode[median]:.1f}",
            "start, s": "{start[median]:.2f}",
            "peak, MB": "{peak!M:,.0f}",
        },
        only={"batch": (1,), "prompt": (128,)},
    ),
}
TABLES: dict[str, Table] = {**QUALITY, **OVERVIEW, **SERVING, **QUANTIZATION, **CONVERSION, **CHOICE}
"""Tables by the name that a page gives: `<!-- table NAME -->`."""
