"""Lists the command lines that `golden.py` runs. A case is a name and the arguments of `curconvert`.

`@` means the folder or file that the case writes. `@name` means the output of another case, which then runs first.
`golden_models.py` writes the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

from golden_models import FAMILIES

COMMANDS = ("convert", "sweep", "plan", "export", "heal", "resize", "bench", "verify", "inspect", "generate")
_SAMPLE = "--calibration-sequences 16 --calibration-tokens 32 --probe-sequences 4"
_LONG = "--calibration-sequences 256 --calibration-tokens 64 --probe-sequences 4"
_TEXT = f"--calibration text.txt {_SAMPLE}"
_IDS = f"--calibration ids.safetensors {_SAMPLE}"
_ALL = "--layers all --targets all --density 0.6"
_CUR = f"{_TEXT} --method cur --layers all --rank 12"
_AUTO = f"{_TEXT} --method auto --rank-multiple 4"
_HEAL = (
    "--data text.txt --data-sequences 32 --data-tokens 32 --probe-sequences 4 --batch 4 --warmup 2 --evaluate-every 3"
)
# A size for each method, with the option that the method takes.
_METHODS = {
    **dict.fromkeys(("cur", "curing", "row-id", "pifa", "svd-llm", "asvd", "fwsvd", "svd"), _ALL),
    "neurons": "--layers all",
    "modegpt": "--layers all",
    "soco": "--keep 0.8 --steps 12",
    "auto": "--keep 0.8 --rank-multiple 4",
    "dense": "--quantize int8",
}


def _convert(cases: Mapping[str, str]) -> dict[str, str]:
    return {name: f"convert {arguments} -o @ --json --quiet" for name, arguments in cases.items()}


def _methods() -> dict[str, str]:
    cases = {}
    for method, size in _METHODS.items():
        cases[f"method-{method}"] = f"llama {_TEXT} --method {method} {size}"
        cases[f"bias-{method}"] = f"qwen2 {_TEXT} --method {method} {size}"
    for form in ("cur", "folded", "interpolative", "auto"):
        cases[f"form-{form}"] = f"llama {_CUR} --form {form}"
    cases["form-curing-folded"] = f"qwen2 {_TEXT} --method curing --layers all --rank 12 --form folded"
    for selector in ("deim", "qdeim", "qr", "lu", "leverage", "random"):
        cases[f"select-{selector}"] = f"llama {_CUR} --select {selector}"
    for selector in ("deim", "qdeim", "leverage"):
        cases[f"select-{selector}-exact"] = f"llama {_CUR} --select {selector} --exact-svd"
    for importance in ("output", "wanda", "activation", "weight"):
        cases[f"importance-{importance}"] = f"llama {_CUR} --importance {importance}"
    for link in ("plain", "diagonal", "full"):
        cases[f"link-{link}"] = f"llama {_CUR} --link {link}"
    for method in ("cur", "curing", "row-id", "pifa", "svd-llm", "neurons", "modegpt"):
        cases[f"sequential-{method}"] = f"qwen2 {_TEXT} --method {method} {_METHODS[method]} --sequential"
    return cases


def _settings() -> dict[str, str]:
    return {
        "default-options": f"llama {_TEXT} --rank 12",
        "builtin-text": f"llama {_SAMPLE} --rank 12",
        "layers-angular": f"llama {_TEXT} --rank 12 --layers angular:2",
        "layers-influence": f"llama {_TEXT} --rank 12 --layers influence:2",
        "layers-rank": f"llama {_TEXT} --rank 12 --layers rank:2",
        "layers-numbers": f"llama {_TEXT} --rank 12 --layers 0,2-3 --targets v_proj,down_proj",
        "ridge-seed": f"llama {_CUR} --select random --ridge 0.1 --seed 7",
        "token-ids": f"llama {_IDS} --rank 12 --layers all",
        "few-tokens": "llama --calibration text.txt --calibration-sequences 2 --calibration-tokens 24 "
        "--probe-sequences 4 --rank 12 --layers angular:2",
        "self-text": f"llama {_CUR} --self-text 0.5",
        "no-begin": f"llama {_CUR} --no-begin",
        "workers": f"llama {_CUR} --workers 2",
        "no-verify": f"llama {_CUR} --no-verify",
        "dtype-float16": f"llama {_CUR} --dtype float16",
        "dtype-bfloat16": f"llama {_CUR} --dtype bfloat16",
        "dtype-bfloat16-auto": f"qwen2 {_AUTO} --keep 0.8 --dtype bfloat16",
        "cuda-cur": f"llama {_CUR} --target cuda",
        "cuda-auto": f"qwen2 {_AUTO} --keep 0.8 --target cuda",
        "cuda-modegpt": f"llama {_TEXT} --method modegpt --layers all --target cuda",
        "source-bfloat16": f"bfloat16 {_CUR}",
        "source-bfloat16-auto": f"bfloat16 {_AUTO} --keep 0.8",
        "source-shards": f"shards {_CUR}",
        "source-lone-file": f"lone.safetensors {_IDS} --rank 12 --layers all --config llama/config.json",
        "source-lone-shapes": f"lone.safetensors {_IDS} --rank 12 --layers all --config-set head_dim=16 "
        "--config-set rope_theta=10000 --config-set rms_norm_eps=0.0003 --config-set model_type=llama "
        "--config-set max_position_embeddings=128",
        "source-adapter": f"adapter {_CUR} --base llama",
        "source-fp8": f"fp8 {_CUR}",
        "source-foreign-names": f"foreign {_CUR} --ignore mtp.*",
        "source-gguf": f"qwen2.gguf {_IDS} --rank 12 --layers all",
        # Between `plan`'s estimates with and without hidden states in memory, so that they go to the disk.
        "memory-limit": f"llama {_CUR.replace(_SAMPLE, _LONG)} --workers 1 --memory-limit 529MB",
    }


def _sizes() -> dict[str, str]:
    return {
        "auto-keep-0.9": f"qwen2 {_AUTO} --keep 0.9",
        "auto-target-params": f"llama {_AUTO} --target-params 150000",
        "auto-target-bytes": f"llama {_AUTO} --target-bytes 600000",
        "auto-max-kl": f"llama {_AUTO} --max-kl 0.2",
        "auto-no-self-text": f"llama {_AUTO} --keep 0.8 --self-text 0",
        "auto-share": f"alike {_AUTO} --keep 0.7 --share",
        "auto-implied": f"llama {_TEXT} --keep 0.8",
        "soco-target-params": f"qwen2 {_TEXT} --method soco --steps 12 --target-params 150000",
        "scored": f"qwen2 {_AUTO} --keep 0.9 --scored",
        "scored-bfloat16": f"bfloat16 {_AUTO} --keep 0.9 --scored",
    }


def _quantized() -> dict[str, str]:
    cases = {}
    for kind in ("int8", "int4"):
        for rounding in ("gptq", "nearest"):
            cases[f"{kind}-{rounding}"] = f"llama {_CUR} --quantize {kind} --rounding {rounding}"
            cases[f"dense-{kind}-{rounding}"] = f"qwen2 {_TEXT} --method dense --quantize {kind} --rounding {rounding}"
        for size in (32, 64, 128):
            cases[f"{kind}-block-{size}"] = f"qwen2 {_CUR} --quantize {kind} --block-size {size}"
        cases[f"{kind}-asymmetric"] = f"qwen2 {_CUR} --quantize {kind} --asymmetric"
    for method in ("row-id", "pifa", "svd-llm", "neurons", "modegpt", "soco", "auto"):
        cases[f"int4-{method}"] = f"qwen2 {_TEXT} --method {method} {_METHODS[method]} --quantize int4"
    return cases | {
        "int3-gptq": f"llama {_CUR} --quantize int3 --asymmetric",
        "int5-dense": f"qwen2 {_TEXT} --method dense --quantize int5 --rounding nearest",
        "int6-dense": f"llama {_TEXT} --method dense --quantize int6 --scale-dtype float32",
        "int7-gptq": f"qwen2 {_CUR} --quantize int7 --block-size 32",
        "int4-folded": f"llama {_CUR} --form folded --quantize int4",
        "int4-bfloat16": f"bfloat16 {_CUR} --quantize int4",
        "bits-dense": f"llama {_TEXT} --method dense --bits-per-weight 6.5",
        "bits-cur": f"qwen2 {_CUR} --bits-per-weight 6.5",
        "bits-auto": f"llama {_AUTO} --keep 0.8 --bits-per-weight 6.5 --asymmetric",
        "bits-nearest": f"llama {_TEXT} --method dense --bits-per-weight 6.5 --rounding nearest",
    }


def _families() -> dict[str, str]:
    cases = {}
    for family in FAMILIES:
        cases[f"family-{family}"] = f"{family} {_TEXT} --method cur --form auto {_ALL}"
        cases[f"family-{family}-modegpt"] = f"{family} {_TEXT} --method modegpt --layers all"
        cases[f"family-{family}-int4"] = f"{family} {_TEXT} --method dense --quantize int4"
    return cases


def _further() -> dict[str, str]:
    """Return the cases of commands that read converted artifacts, and of `export` and `sweep`."""
    heal = {
        "whole": f"@form-cur --against llama {_HEAL} --steps 6",
        "whole-kl": f"@bias-cur --against qwen2 {_HEAL} --steps 6 --kl 0.5 --accumulate 2 --checkpointing",
        "norms": f"@bias-pifa --against qwen2 {_HEAL} --steps 6 --train u+norms",
        "blocks": f"@form-cur --against llama {_HEAL} --steps 4 --mode blocks",
        "als": f"@bias-cur --against qwen2 {_HEAL} --start als --steps 0",
        "als-blocks": f"@form-interpolative --against llama {_HEAL} --start als --steps 3 --mode blocks",
        "task": f"@form-cur {_HEAL.replace('text.txt', 'task.jsonl')} --objective ce --steps 6",
        "task-kl": f"@form-cur --against llama {_HEAL.replace('text.txt', 'task.jsonl')} --objective ce --kl 1 "
        "--steps 6",
        "cuda": f"@cuda-cur --against llama {_HEAL} --steps 3",
        "no-verify": f"@dtype-bfloat16 --against llama {_HEAL} --steps 3 --no-verify",
    }
    export = {
        "plain": "llama",
        "bias": "qwen2",
        "bfloat16": "llama --dtype bfloat16",
        "cuda": "qwen2 --target cuda",
        "int8": "llama --quantize int8",
        "int6": "llama --quantize int6 --scale-dtype float16",
        "int4": "qwen2 --quantize int4 --block-size 32 --asymmetric",
        "bits": "llama --bits-per-weight 6.5",
        "gguf": "qwen2.gguf",
    }
    resize = {
        "keep": "@scored --keep 0.7",
        "params": "@scored --target-params 140000 --workers 2",
        "bfloat16": "@scored-bfloat16 --keep 0.75",
    }
    sweep = {
        "bound": f"llama --keep 0.9,0.7 --methods auto,pifa {_TEXT} --rank-multiple 4",
        "text": f"qwen2 --keep 0.8 --methods auto,cur,svd-llm,modegpt {_TEXT} --rank-multiple 4 --text other.txt "
        "--window 64 --max-tokens 512 --keep-artifacts",
    }
    groups = {"heal": heal, "export": export, "resize": resize, "sweep": sweep}
    return {
        f"{command}-{name}": f"{command} {arguments} -o @ --json --quiet"
        for command, cases in groups.items()
        for name, arguments in cases.items()
    }


def _reading() -> dict[str, str]:
    """Return the cases that only print."""
    measured = "--against llama --text other.txt --window 64 --max-tokens 512 --json --quiet"
    return {
        "plan-cur": f"plan llama {_CUR} --json --quiet",
        "plan-scores": f"plan llama {_TEXT} --rank 12 --layers rank:2 --json --quiet",
        "plan-auto": f"plan qwen2 {_AUTO} --keep 0.8 --json --quiet",
        "plan-modegpt": f"plan llama {_TEXT} --method modegpt --layers all --json --quiet",
        "plan-int4": f"plan qwen2 {_TEXT} --method pifa {_ALL} --quantize int4 --json --quiet",
        "plan-text": f"plan llama {_CUR}",
        "inspect-cur": "inspect @form-cur --json",
        "inspect-text": "inspect @bits-cur",
        "inspect-auto-text": "inspect @method-auto",
        "verify-cur": "verify @form-cur --json --quiet",
        "verify-text": "verify @method-auto --quiet",
        "verify-no-torch": "verify @int4-gptq --no-torch --json --quiet",
        "verify-against": f"verify @form-cur {measured}",
        "verify-against-quantized": f"verify @int4-gptq {measured}",
        "verify-against-exported": "verify @form-cur --against @export-plain --text other.txt --window 64 "
        "--max-tokens 512 --json --quiet",
        "verify-no-begin": f"verify @form-cur {measured} --no-begin",
        "verify-gated": "verify @form-cur --max-kl 1e-9 --min-top1 1 --max-ppl-ratio 1 --json --quiet",
        "verify-junit": "verify @form-cur --junit @ --json --quiet",
        "generate": "generate @form-cur --prompt the --max-new-tokens 24",
        "generate-json": "generate @form-cur --prompt the --prompt 'a river' --max-new-tokens 24 --json",
        "generate-portable": "generate @int4-gptq --prompt the --max-new-tokens 24 --graph portable",
        "generate-fused": "generate @int4-gptq --prompt the --prompt 'a river' --max-new-tokens 24 --graph fused",
        "generate-sampled": "generate @method-auto --prompt the --max-new-tokens 24 --temperature 0.8 --top-k 20 "
        "--top-p 0.9 --min-p 0.01 --repetition-penalty 1.1 --seed 3",
        "generate-chat": "generate @bias-modegpt --prompt the --max-new-tokens 24 --chat --stop e",
        "generate-cuda-graph": "generate @cuda-cur --prompt the --max-new-tokens 24",
        "text-convert": f"convert llama {_CUR} -o @",
        "text-resize": "resize @scored --keep 0.8 -o @",
        "text-heal": f"heal @form-cur --against llama {_HEAL} --steps 3 -o @",
        "text-sweep": f"sweep llama --keep 0.8 --methods pifa {_TEXT} -o @",
        "bench": "bench @form-cur --against @export-plain --prompt-tokens 8 --generated-tokens 4 --rounds 1 --json "
        "--quiet",
    }


def _refusals() -> dict[str, str]:
    return {
        f"refuse-{name}": f"{arguments} --quiet"
        for name, arguments in {
            "method": f"convert llama {_TEXT} --method curr -o @",
            "missing": "convert nowhere.safetensors -o @",
            "two-sizes": "convert llama --method auto --keep 0.8 --max-kl 0.1 --target-params 9 -o @",
            "form": "convert llama --method pifa --form folded -o @",
            "cuda": "convert llama --target cuda --quantize int4 -o @",
            "keep": "convert llama --keep 1.5 -o @",
            "too-small": f"convert llama {_AUTO} --keep 0.01 -o @",
            "existing": f"convert llama {_CUR} -o @form-cur",
            "threshold": f"convert llama {_CUR} --max-kl 1e-9 -o @",
            "resize": "resize @form-cur --keep 0.5 -o @",
            "heal": f"heal @method-svd --against llama {_HEAL} --steps 1 -o @",
            "heal-original": f"heal @form-cur --against qwen2 {_HEAL} --steps 1 -o @",
            "export-dtype": "export llama --dtype int3 -o @",
            "verify-folder": "verify llama",
            "verify-text": "verify @form-cur --text other.txt",
            "generate-provider": "generate @form-cur --prompt a --provider tpu",
            "sweep-method": "sweep llama --methods nothing -o @",
        }.items()
    } | {"refuse-command": "convrt llama -o @", "refuse-number": "convert llama -o @ --rank many"}


def tiny_cases() -> dict[str, str]:
    """Return the arguments of every case on the tiny checkpoints, by name."""
    converting = _convert(_methods() | _settings() | _sizes() | _quantized() | _families())
    helping = {"help": "--help"} | {f"help-{command}": f"{command} --help" for command in COMMANDS}
    return converting | _further() | _reading() | _refusals() | helping


def model_cases(model: str) -> dict[str, str]:
    """Return a shorter set of cases for a real checkpoint file, which takes some minutes."""
    sample = "--calibration-sequences 32 --calibration-tokens 64 --probe-sequences 4"
    return _convert(
        {
            "model-cur": f"'{model}' {sample} --method cur --rank 128",
            "model-auto": f"'{model}' {sample} --keep 0.8",
        }
    ) | {
        "model-int4": f"export '{model}' --quantize int4 -o @ --json --quiet",
        "model-generate": "generate @model-cur --prompt 'The capital of France is' --max-new-tokens 24",
    }
