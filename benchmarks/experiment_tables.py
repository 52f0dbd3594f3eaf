"""Defines the tables of the page about experiments: which figures of which result each one shows."""

from __future__ import annotations

from benchmarks.cells import KL_CELL, Table, quartile_cell, span_cell

_TRAINED = {"method": "`{method}`", "trained": "{trained}"}
_SHARED = {"kept by `auto`": "{kept:.0%}", "sharing": "{sharing}"}
_PRODUCT = {"weights": "{weights}", "block": "{block}", "zero points": "{zero_points}"}
_PRODUCT_SPEED = {
    **_PRODUCT,
    "speed-up": "{speedup:.2f}",
    "times fewer bytes": "{bytes_say:.2f}",
    "speed-up / times fewer bytes": "{by_bytes:.2f}",
    "relative error": "{error:.0e}",
}
TABLES = {
    "paper_setting": Table(
        "paper_setting",
        "rows",
        {
            "method": "{method}",
            "parameters": "{parameters:,}",
            "KL, nats": KL_CELL,
            "top-1": "{top1:.4f}",
            "perplexity, original → compressed": "{perplexity_original:.2f} → {perplexity:.2f}",
            "conversion, s": "{seconds:.0f}",
        },
    ),
    "paper_setting.spread": Table(
        "paper_setting",
        "rows",
        {
            "method": "{method}",
            "median": "{kl_median:.3f}",
            "90th percentile": "{kl_p90:.3f}",
            "99th percentile": "{kl_p99:.3f}",
            "maximum": "{kl_max:.2f}",
        },
    ),
    "paper_pipeline.seconds": Table(
        "paper_pipeline", "seconds", {"stage": "{stage}", "median time, s": "{seconds:.1f}"}
    ),
    "paper_pipeline.beside": Table(
        "paper_pipeline",
        "beside",
        {
            "method": "{setting}",
            "times as fast": span_cell("faster", ".1f"),
            "times as fast, error measurement excluded": span_cell("faster_alone", ".1f"),
            "output error / paper's": "{error[median]:.4f} (at most {error[most]:.4f})",
            "rows that the paper's method picks too": "{rows[mean]:.1%} (at least {rows[least]:.1%})",
        },
    ),
    "paper_pipeline.agreement": Table(
        "paper_pipeline",
        "agreement",
        {
            "rank": "{rank}",
            "default: mean, worst matrix": "{default[mean]:.1%}, {default[least]:.1%}",
            "Krylov space: mean, worst matrix": "{krylov[mean]:.1%}, {krylov[least]:.1%}",
        },
    ),
    "begin_tokens": Table(
        "begin_tokens",
        "perplexity",
        {
            "model": "{model}",
            "begin token of the tokenizer": "{begin}",
            "perplexity with it": "{with:.2f}",
            "perplexity without it": "{without:.2f}",
        },
    ),
    "begin_tokens.divergence": Table(
        "begin_tokens",
        "divergence",
        {
            "method": "`{method}`",
            "KL calibrated with it, nats": "{with:.4f}",
            "KL calibrated without it, nats": "{without:.4f}",
            "KL saved": "{saved:.1%}",
        },
    ),
    "resize": Table(
        "resize",
        "sizes",
        {
            "kept": "{kept:.0%}",
            "parameters": "{parameters:,} / {fresh[parameters]:,}",
            "KL, nats": "{kl:.4f} / {fresh[kl]:.4f}",
            "perplexity": "{perplexity:.2f} / {fresh[perplexity]:.2f}",
            "ratio of perplexities": "{ratio:.4f}",
            "time, s": "{seconds:.0f} / {fresh[seconds]:.0f}",
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
            "compressed matrices (parameters of the model)": "{matrices} ({parameters:,})",
            "method": "`{method}`",
            "rule": "{rule}",
            "KL, nats": "{kl:.4f}",
            "paired difference, nats": "{difference:+.4f} ± {difference_error:.4f}",
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
            "shared / separate, median": "{median:.1f}",
            "shared / separate, range": "{least:.2f} to {most:.0f}",
            "pairs where sharing is better": "{better} of {pairs}",
        },
    ),
    "share": Table(
        "share",
        "measured",
        {
            **_SHARED,
            "shared pairs": "{pairs}",
            "KL, nats": KL_CELL,
            "paired difference, nats": "{difference:+.4f} ± {difference_error:.4f}",
            "perplexity": "{perplexity:.2f}",
            "top-1": "{top1:.3f}",
        },
    ),
    "share.cost": Table(
        "share",
        "measured",
        {
            **_SHARED,
            "predicted KL, nats": "{cost:.4f}",
            "multiplications per token, 10⁶": "{work!M:.1f}",
            "of these in keys and values, 10⁶": "{work_kv!M:.1f}",
        },
        needs="cost",
    ),
    "healing": Table(
        "healing",
        "healed",
        {
            **_TRAINED,
            "steps": "{steps}",
            "original": "{original:.2f}",
            "compressed": "{compressed:.2f}",
            "healed": "{healed:.2f}",
            "share recovered": "{share:.1%} ± {share_error:.1%}",
        },
    ),
    "healing.cost": Table(
        "healing",
        "healed",
        {**_TRAINED, "trained parameters": "{numbers:,}", "CPU time, minutes": "{seconds!t:.0f}"},
        needs="numbers",
    ),
    "healing.curves": Table("healing", "curves", _TRAINED, across="step {step}", value="{kl:.3f}"),
    "products.rounded": Table("products", "products", _PRODUCT_SPEED, only={"level": (None, 4)}),
    "products.exact": Table("products", "products", _PRODUCT_SPEED, only={"level": (1,)}),
    "products.bandwidth": Table(
        "products",
        "products",
        {
            **_PRODUCT,
            "accuracy level": "{level}",
            "from memory, GB/s": "{rate!G:.1f}",
            "from the caches, GB/s": "{cached!G:.1f}",
        },
    ),
    "ordering": Table(
        "ordering",
        "rows",
        {
            "numbers per token": "{numbers}",
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
            "symbolic axes, ms per step": "{symbolic!m:.1f}",
            "known shapes, ms per step": "{static!m:.1f}",
            "times as fast": quartile_cell("faster"),
        },
    ),
    "stacking": Table(
        "stacking",
        "rows",
        {"rows × columns": "{shape}", "weights": "{weights}"},
        across="µs per layer, tokens: {tokens}",
        value="{apart!u:.0f} → {stacked!u:.0f} ({faster:.2f})",
    ),
    "compensation": Table(
        "compensation",
        "rows",
        {
            "bits per number": "{bits}",
            "int4 alone": "{rounded:.2e}",
            "int4 with a low-rank correction": "{corrected:.2e}",
            "int8 for some matrices": "{mixed:.2e}",
        },
    ),
}
