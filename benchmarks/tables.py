"""The tables of the pages about the suite: which figures of which result each shows."""

from __future__ import annotations

from benchmarks.cells import KL_CELL, Table, quartile_cell, span_cell

_SERVED = {"artifact": "{artifact}", "batch": "{batch}", "prompt": "{prompt}"}
_OURS = {
    "prefill, tokens/s": span_cell("prefill", ".0f"),
    "decode, tokens/s": span_cell("decode", ".1f"),
    "start, s": span_cell("start"),
    "peak, MB": "{peak!M:,.0f}",
}


def _beside(peer: str) -> dict[str, str]:
    """Return the columns that say how many times as long a peer takes as our runtime."""
    return {part: span_cell(f"{peer}[{part}]") for part in ("prefill", "decode", "start")} | {
        "peak, MB": f"{{{peer}[peak]!M:,.0f}}"
    }


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
        "quality", "points", {"method": "`{method}`"}, across="{kept:.3f}: {target!M:.2f} M", value=KL_CELL
    ),
    "quality.perplexity": Table(
        "quality",
        "points",
        {"method": "`{method}`"},
        across="{kept:.3f}: {target!M:.2f} M",
        value="{perplexity!p} ({top1:.3f})",
    ),
    "quality.auto": Table(
        "quality",
        "auto",
        {
            "method and size": "`{option}`",
            "parameters": "{parameters:,}",
            "kept": "{kept:.3f}",
            "KL": KL_CELL,
            "perplexity": "{perplexity:.2f}",
            "same first choice": "{top1:.3f}",
        },
    ),
    "quality.tasks": Table(
        "quality",
        "tasks",
        {
            "method": "`{method}`",
            "kept": "{kept:.3f}",
            "perplexity, windows of 1024, whole text": "{perplexity_1024:.2f}",
            "windows of 512, first 24,576 tokens": "{perplexity_512:.2f}",
            "windows of 128, first 24,576 tokens": "{perplexity_128:.2f}",
            "BLiMP": "{blimp:.3f} ± {blimp_error:.3f}",
            "PIQA": "{piqa:.3f} ± {piqa_error:.3f}",
        },
    ),
}
SERVING = {
    "serving": Table(
        "serving",
        "serving",
        {
            "artifact": "{artifact}",
            "prefill, tokens/s": "{prefill[median]:.0f} ({genai[prefill][median]:.2f})",
            "decode, tokens/s": "{decode[median]:.1f} ({genai[decode][median]:.2f})",
            "start, s": "{start[median]:.2f} ({genai[start][median]:.2f})",
            "peak, MB (onnxruntime-genai's)": "{peak!M:,.0f} ({genai[peak]!M:,.0f})",
        },
        only={"batch": (1,), "prompt": (128,)},
        needs="genai",
    ),
    "serving.ours": Table("serving", "serving", {**_SERVED, **_OURS}),
    **{
        f"serving.{peer}": Table("serving", "serving", {**_SERVED, **_beside(peer)}, needs=peer)
        for peer in ("genai", "hugetlb", "optimum", "torch")
    },
    "huge_pages.serving": Table(
        "huge_pages",
        "serving",
        {
            **_SERVED,
            **{name: _OURS[name] for name in list(_OURS)[:2]},
            "small pages: prefill": span_cell("small[prefill]"),
            "small pages: decode": span_cell("small[decode]"),
            "onnxruntime-genai: prefill": span_cell("genai[prefill]"),
            "onnxruntime-genai: decode": span_cell("genai[decode]"),
        },
    ),
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
            "MB of weights a token": "{weights!M:,.0f}",
            "curconvert": "{peak!M:,.0f}",
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
            "beside": "{beside}",
            "part": "{part}",
            "medians of rounds' ratios": "{rounds[least]:.2f} to {rounds[most]:.2f}",
            "ratios of medians": "{medians[least]:.2f} to {medians[most]:.2f}",
        },
    ),
    "huge_pages.start": Table(
        "huge_pages",
        "start",
        {
            "artifact": "{artifact}",
            "threads": "{threads}",
            "curconvert, s": span_cell("start"),
            "small pages, s": span_cell("small"),
            "huge pages, s": span_cell("huge"),
            "onnxruntime-genai, s": span_cell("genai"),
            "optimum, s": span_cell("optimum"),
            "onnxruntime-genai / curconvert": "{ratio:.2f}",
        },
    ),
    "decode": Table(
        "decode",
        "decode",
        {
            "model": "{model}",
            "form": "{form}",
            "batch": "{batch}",
            "MB read per step": "{bytes!M:,.0f}",
            "MB copied": "{copied!M:,.0f}",
            "ms of CPU time per step": "{seconds!m:.1f}",
            "tokens/s of CPU time": "{tokens:.1f}",
            "of the read bandwidth": "{bandwidth:.0%}",
            "speed-up": quartile_cell("speedup"),
            "bytes say": "{bytes_say:.2f}",
            "speed-up / bytes": "{by_bytes:.2f}",
            "copies say": "{copies_say:.2f}",
            "speed-up / copies": "{by_copies:.2f}",
        },
    ),
}
SERVING["huge_pages.idle"] = Table("huge_pages", "idle", SERVING["huge_pages.serving"].columns)
QUANTIZATION = {
    "quantization": Table(
        "quantization",
        "artifacts",
        {
            "artifact": "{artifact}",
            "MB": "{bytes!M:.1f}",
            "KL": "{kl:.3f}",
            "same first choice": "{top1:.3f}",
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
            "MB": "{bytes!M:.1f}",
            "KL mean ± standard error": "{kl:.5f} ± {kl_error:.5f}",
            "same first choice": "{top1:.4f}",
            "perplexity": "{perplexity:.3f}",
            "over the original's": "{ratio:.4f}",
        },
    ),
}
_SCALE = {"setting": "{setting}", "shape": "{shape}"}
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
            "parameters, 10⁹": "{before!G:.2f} → {after!G:.2f}",
            "seconds (`plan`'s)": "{seconds:.0f} ({expected[seconds]:.0f})",
            "original": "{stages[original]:.0f}",
            "compress": "{stages[compress]:.0f}",
            "graphs, hashes, reports": "{stages[rest]:.0f}",
            "seconds per 10⁹ parameters": "{rate:.0f}",
            "a block in float32, GB": "{block!G:.2f}",
            "peak memory (`plan`'s), GB": "{peak!G:.2f} ({expected[peak]!G:.2f})",
            "written, GB": "{written!G:.1f}",
        },
    ),
    "conversion.default": Table(
        "conversion",
        "default",
        {
            "default conversion": "{setting}",
            "seconds": "{seconds[median]:.0f} ({seconds[least]:.0f} to {seconds[most]:.0f})",
            "peak memory, MB": "{peak[median]!M:.0f} ({peak[least]!M:.0f} to {peak[most]!M:.0f})",
        },
    ),
    "conversion.depth": Table(
        "conversion",
        "depth",
        {
            "layers": "{layers}",
            "weights written": "{written!M:.0f} MB",
            "peak memory": "{peak!M:.0f} MB",
            "seconds": "{seconds:.0f}",
        },
    ),
    "conversion.plan": Table(
        "conversion",
        "plan",
        {
            "model": "{model}",
            "setting": "{setting}",
            "seconds": "{expected[seconds]:.0f} / {seconds:.0f}",
            "ratio": "{ratio[seconds]:.2f}",
            "peak memory, GB": "{expected[peak]!G:.2f} / {peak!G:.2f}",
            "its ratio": "{ratio[peak]:.2f}",
            "temporary disk, GB": "{expected[temporary]!G:.2f} / {temporary!G:.2f}",
            "ratio of that": "{ratio[temporary]:.2f}",
            "weights written, GB": "{expected[written]!G:.3f} / {written!G:.3f}",
            "ratio of these": "{ratio[written]:.2f}",
        },
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
            "same first choice": "{top1:.3f}",
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
            "same first choice": "{top1:.0%}",
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
            "same first choice": "{top1:.3f}",
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
            "same first choice": "{top1:.3f}",
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
            "same first choice": "{top1:.3f}",
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
TABLES: dict[str, Table] = {**QUALITY, **SERVING, **QUANTIZATION, **CONVERSION, **CHOICE}
"""By the name that stands in a page: `<!-- table NAME -->`."""
