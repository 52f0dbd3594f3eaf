"""Defines the tables of the page about experiments: which figures of which result each one shows."""

from __future__ import annotations

from benchmarks.cells import KL_CELL, Table, quartile_cell, span_cell

_TRAINED = {"method": "`{method}`", "trained": "{trained}"}
TABLES = {
    "paper_setting": Table(
        "paper_setting",
        "rows",
        {
            "method": "{method}",
            "parameters": "{parameters:,}",
            "KL mean ± standard error": KL_CELL,
            "KL median / p90 / p99 / max": "{kl_median:.3f} / {kl_p90:.3f} / {kl_p99:.3f} / {kl_max:.2f}",
            "same first choice": "{top1:.4f}",
            "perplexity": "{perplexity_original:.2f} → {perplexity:.2f}",
            "conversion, s": "{seconds:.0f}",
        },
    ),
    "paper_pipeline.seconds": Table(
        "paper_pipeline", "seconds", {"stage": "{stage}", "seconds, median": "{seconds:.1f}"}
    ),
    "paper_pipeline.beside": Table(
        "paper_pipeline",
        "beside",
        {
            "": "{setting}",
            "times as fast": span_cell("faster", ".1f"),
            "without the errors": span_cell("faster_alone", ".1f"),
            "output error over the paper's": "{error[median]:.4f} (at most {error[most]:.4f})",
            "the same rows": "{rows[mean]:.1%} (at least {rows[least]:.1%})",
        },
    ),
    "paper_pipeline.agreement": Table(
        "paper_pipeline",
        "agreement",
        {
            "rank": "{rank}",
            "default": "{default[mean]:.1%}, {default[least]:.1%}",
            "Krylov space": "{krylov[mean]:.1%}, {krylov[least]:.1%}",
        },
    ),
    "resize": Table(
        "resize",
        "sizes",
        {
            "kept": "{kept:.2f}",
            "parameters": "{parameters:,} / {fresh[parameters]:,}",
            "KL": "{kl:.4f} / {fresh[kl]:.4f}",
            "perplexity": "{perplexity:.2f} / {fresh[perplexity]:.2f}",
            "ratio": "{ratio:.4f}",
            "seconds": "{seconds:.0f} / {fresh[seconds]:.0f}",
        },
    ),
    "resize.scored": Table(
        "resize",
        "scored",
        {
            "conversion with `--scored`, s": "{seconds:.0f}",
            "components, MB": "{components!M:.0f}",
            "weights, MB": "{weights!M:.0f}",
        },
    ),
    "sequential": Table(
        "sequential",
        "rows",
        {
            "matrices": "{matrices}",
            "method": "`{method}`",
            "parameters": "{parameters:,}",
            "rule": "{rule}",
            "KL": "{kl:.4f}",
            "difference, paired": "{difference:+.4f} ± {difference_error:.4f}",
            "perplexity": "{perplexity:.2f}",
            "conversion, s": "{seconds:.0f}",
        },
    ),
    "sharing.predicted": Table(
        "sharing",
        "predicted",
        {
            "matrix": "{matrix}",
            "density": "{density}",
            "median of shared / separate": "{median:.1f}",
            "range": "{least:.2f} to {most:.0f}",
            "pairs in which sharing is better": "{better} of {pairs}",
        },
    ),
    "share": Table(
        "share",
        "measured",
        {
            "`auto`, kept": "{kept:.1f}",
            "": "{sharing}",
            "pairs": "{pairs}",
            "predicted cost": "{cost:.4f}",
            "KL": KL_CELL,
            "perplexity": "{perplexity:.2f}",
            "same first choice": "{top1:.3f}",
            "difference of KL, paired": "{difference:+.4f} ± {difference_error:.4f}",
            "multiplications a token, 10⁶": "{work!M:.1f}",
            "of these in keys and values": "{work_kv!M:.1f}",
        },
    ),
    "healing": Table(
        "healing",
        "healed",
        {
            **_TRAINED,
            "steps": "{steps}",
            "numbers": "{numbers:,}",
            "original": "{original:.2f}",
            "compressed": "{compressed:.2f}",
            "healed": "{healed:.2f}",
            "share won back": "{share:.1%} ± {share_error:.1%}",
            "CPU minutes": "{seconds!t:.0f}",
        },
    ),
    "healing.curves": Table("healing", "curves", _TRAINED, across="step {step}", value="{kl:.3f}"),
    "products": Table(
        "products",
        "products",
        {
            "weights": "{weights}",
            "block": "{block}",
            "zero points": "{zero_points}",
            "accuracy level": "{level}",
            "GB/s": "{rate!G:.1f}",
            "from the caches, GB/s": "{cached!G:.1f}",
            "speed-up": "{speedup:.2f}",
            "bytes say": "{bytes_say:.2f}",
            "speed-up / bytes": "{by_bytes:.2f}",
            "relative error": "{error:.0e}",
        },
    ),
    "ordering": Table(
        "ordering",
        "rows",
        {
            "numbers": "{numbers}",
            "tokens": "{tokens}",
            "Gather, µs": "{gather!u:.0f}",
            "Expand and GatherElements, µs": "{elements!u:.0f}",
            "times as fast": "{faster:.1f}",
        },
    ),
    "static_shapes": Table(
        "static_shapes",
        "rows",
        {
            "batch": "{batch}",
            "ms a step, symbolic axes": "{symbolic!m:.1f}",
            "ms, all shapes known": "{static!m:.1f}",
            "times as fast": quartile_cell("faster"),
        },
    ),
    "stacking": Table(
        "stacking",
        "rows",
        {
            "rows × columns": "{shape}",
            "weights": "{weights}",
            "tokens": "{tokens}",
            "apart, µs a layer": "{apart!u:.0f}",
            "stacked": "{stacked!u:.0f}",
            "times as fast stacked": "{faster:.2f}",
        },
    ),
    "compensation": Table(
        "compensation",
        "rows",
        {
            "bits a number": "{bits}",
            "rounded": "{rounded:.2e}",
            "with a low-rank correction": "{corrected:.2e}",
            "int8 for some": "{mixed:.2e}",
        },
    ),
}
