"""Measures time and memory of converting large models: Llama-shaped checkpoints, generated with decaying spectra.

Each conversion runs in its own process. Its stages are timed, and its peak resident memory is the system's figure for
that process (`VmHWM`). The weights are random, so the results say nothing about quality. The script checks the
artifact's integrity, and that every C, R and uncompressed tensor has the original's bits. It does not run the graphs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.common import Result, arguments, torch_threads
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions
from curconvert.artifact.safetensors_writer import SafetensorsWriter
from curconvert.base.layout import TensorSpec
from curconvert.base.names import layer_of
from curconvert.jobs.convert import convert
from curconvert.jobs.parity import check_slices
from curconvert.jobs.plan import predict
from curconvert.options.targets import LINEARS

# hidden, intermediate, layers, heads, key-value heads, head size, tied: Llama 3.2 1B and 3B, Llama 3.1 8B.
SHAPES = {
    "1B": (2048, 8192, 16, 32, 8, 64, True),
    "3B": (3072, 8192, 28, 24, 8, 128, True),
    "8B": (4096, 14336, 32, 32, 8, 128, False),
}
VOCABULARY = 128_256
SHARDS = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "headline": {"method": "curing", "rank": 256, "layers": "angular:10"},
    "all linears": {"method": "curing", "rank": 256, "layers": "all", "targets": LINEARS},
}
SEQUENCES, LENGTH, PROBES = 16, 128, 4
_COMPONENTS = 256  # components of each generated matrix, added to noise


def shape_of(name: str, cut: int | None) -> tuple[tuple[int, int, int, int, int, int, bool], int]:
    """Return a shape's numbers and its vocabulary, both cut to `cut` layers if given."""
    hidden, intermediate, layers, heads, kv_heads, head_dim, tied = SHAPES[name]
    found = cut or layers
    return (hidden, intermediate, found, heads, kv_heads, head_dim, tied), VOCABULARY * found // layers


def config_of(name: str, cut: int | None = None) -> dict[str, Any]:
    """Return the `config.json` of a shape, with all layers or `cut` layers."""
    (hidden, intermediate, layers, heads, kv_heads, head_dim, tied), vocabulary = shape_of(name, cut)
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocabulary, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072, "rope_theta": 500_000.0, "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False, "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "bos_token_id": vocabulary - 256,
        "eos_token_id": vocabulary - 255,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }  # fmt: skip


def shapes_of(name: str, cut: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name, with all layers or `cut` layers."""
    (hidden, intermediate, layers, heads, kv_heads, head_dim, tied), vocabulary = shape_of(name, cut)
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if not tied:
        found["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        found |= {
            f"{stem}.input_layernorm.weight": (hidden,),
            f"{stem}.post_attention_layernorm.weight": (hidden,),
            f"{stem}.self_attn.q_proj.weight": (heads * head_dim, hidden),
            f"{stem}.self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            f"{stem}.self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            f"{stem}.self_attn.o_proj.weight": (hidden, heads * head_dim),
            f"{stem}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{stem}.mlp.up_proj.weight": (intermediate, hidden),
            f"{stem}.mlp.down_proj.weight": (hidden, intermediate),
        }
    return found


def generate(folder: Path, name: str) -> Path:
    """Write a sharded bfloat16 checkpoint of a shape, one tensor at a time; return its folder."""
    folder.mkdir(parents=True)
    shapes = shapes_of(name)
    (folder / "config.json").write_text(json.dumps(config_of(name), indent=1), encoding="utf-8")
    specs = [TensorSpec(tensor, torch.bfloat16, shape) for tensor, shape in shapes.items()]
    largest = sum(spec.nbytes for spec in specs) // SHARDS + 2 * VOCABULARY * SHAPES[name][0]
    with SafetensorsWriter(folder, specs, shard_bytes=largest) as writer:
        for number, (tensor, shape) in enumerate(shapes.items()):
            writer.write(tensor, decaying(shape, torch.Generator().manual_seed(number)).to(torch.bfloat16))
        writer.finish()
    return folder


def decaying(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return a matrix whose singular values decay like those of trained ones, i^-½ plus noise; ones for a norm."""
    if len(shape) == 1:
        return torch.ones(shape)
    m, n = shape
    noise = 0.01 * torch.randn(m, n, generator=generator)
    if m == VOCABULARY:
        return noise
    left, right = (torch.randn(size, _COMPONENTS, generator=generator) for size in (m, n))
    scale = 0.01 * torch.arange(1, _COMPONENTS + 1) ** -0.5
    columns = torch.exp(0.3 * torch.randn(n, generator=generator))  # features of different strength
    return noise.addmm_(left * scale, right.T).mul_(columns)


def tokens_of(path: Path) -> None:
    """Write random token ids with unequal frequencies, as in real text."""
    ids = np.random.default_rng(0).zipf(1.2, (SEQUENCES + PROBES, LENGTH))
    save_file({"input_ids": torch.from_numpy(np.minimum(ids, VOCABULARY - 1))}, path)


def options_of(tokens: Path, name: str) -> ConvertOptions:
    """Return the conversion options of a setting."""
    calibration = CalibrationOptions(
        str(tokens), sequences=SEQUENCES, tokens_per_sequence=LENGTH, probe_sequences=PROBES
    )
    return ConvertOptions.for_method(calibration=calibration, **SETTINGS[name])


def convert_here(source: Path, tokens: Path, out: Path, name: str) -> dict[str, Any]:
    """Convert in this process; return seconds by stage, peak memory and parameters."""
    options = options_of(tokens, name)
    start = last = time.perf_counter()
    stages: dict[str, float] = {}

    def progress(stage: str, _done: int, _total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[stage] = stages.get(stage, 0.0) + now - last
        last = now

    result = convert(SourceOptions(str(source)), out, options, progress=progress)
    end = time.perf_counter()
    assert result.plan is not None
    return {
        "seconds": end - start,
        "stages": {**stages, "rest": end - last},
        "peak": result.peak_memory_bytes,
        "before": result.plan.parameters_before,
        "after": result.plan.parameters_after,
        "block": 4 * sum(m.parameters_before for m in result.plan.matrices if layer_of(m.name) == 0),
    }


def measure(folder: Path, shape: str, setting: str) -> dict[str, Any]:
    """Convert in a separate process, check the artifact and delete it; return the figures."""
    source, out = folder / shape, folder / "out"
    command = [sys.executable, "-m", __spec__.name, "--convert", setting, "--scratch", str(folder), "--shapes", shape]
    expected = predict(SourceOptions(str(source)), options_of(folder / "tokens.safetensors", setting), folder)
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    # Opening the artifact fails if any byte differs from its manifest.
    failed = [check.name for check in check_slices(out, source) if not check.passed]
    if failed:
        raise SystemExit(f"{shape}, {setting}: {', '.join(failed)}")
    shutil.rmtree(out)
    rate = 1e9 * found["seconds"] / found["before"]
    expectation = {"seconds": expected.seconds, "peak": expected.peak_memory_bytes}
    return {**found, "written": size, "rate": rate, "expected": expectation}


def main() -> None:
    """Generate, convert and check each shape."""
    parser = arguments("scale", __doc__)
    parser.add_argument("--shapes", nargs="+", default=[*SHAPES], choices=[*SHAPES])
    parser.add_argument("--settings", nargs="+", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--scratch", type=Path, required=True, help="folder for checkpoints and outputs: 40 GB for 8B")
    parser.add_argument("--convert", choices=[*SETTINGS], help=SUPPRESS)
    given = parser.parse_args()
    tokens = given.scratch / "tokens.safetensors"
    if given.convert:
        print(json.dumps(convert_here(given.scratch / given.shapes[0], tokens, given.scratch / "out", given.convert)))
        return
    setting = {
        "model": f"generated, Llama's shapes, bfloat16, {SHARDS} shards",
        "calibration": f"{SEQUENCES} × {LENGTH} tokens, {PROBES} probe sequences",
        "method": "curing, rank 256", "headline": "q/k/gate of 10 layers by angular distance",
    }  # fmt: skip
    result = Result(given.out, setting, torch_threads())
    given.scratch.mkdir(parents=True, exist_ok=True)
    tokens_of(tokens)
    for shape in given.shapes:
        if not (given.scratch / shape).exists():
            generate(given.scratch / shape, shape)
        for name in given.settings:
            result.add("conversions", measure(given.scratch, shape, name), setting=name, shape=shape)


if __name__ == "__main__":
    main()
