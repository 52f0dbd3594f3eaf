"""Adapters: PEFT's own merge is the oracle; what is refused, and how it is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.adapters.find import find_adapter
from curconvert.jobs.export import export
from curconvert.options.source import SourceOptions
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.hashing import sha256
from support.adapters import LINEARS, merged_tensors, train_adapter, write_gguf_adapter
from support.command_line import call
from support.families import TinyModel, make_checkpoint
from support.gguf_files import write_gguf
from support.quantized_checkpoints import FORMATS, quantize_checkpoint
from support.tiny_runs import add_tokenizer

Tiny = Callable[[str], TinyModel]
_NEAR = {"rtol": 2e-6, "atol": 2e-6}
_WEIGHTS = "adapter_model.safetensors"
_TOKENS = {"embed_tokens": [3, 96, 7]}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "all-linears": ("mistral", {"target_modules": "all-linear"}),
    "rank-stabilized": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"down_proj": 8, "^model.layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 5},
        },
    ),
    "dora": ("llama", {"target_modules": list(LINEARS), "use_dora": True}),
    "dora-of-an-embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "qwen2-biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}),
    "qwen2-low-rank-biases": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "fused-dora": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}),
    "lm-head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "modules-to-save": (
        "llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "fused-modules-to-save": ("phi3", {"target_modules": ["o_proj"], "modules_to_save": ["qkv_proj"]}),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 96, 7]}),
    "tokens-and-lm-head": (
        "llama", {"target_modules": ["q_proj"], "trainable_token_indices": _TOKENS | {"lm_head": [5]}},
    ),
    "tied": ("gemma2", {"target_modules": list(LINEARS)}),
    "tied-tokens": ("gemma2", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 96, 7]}),
    "tied-modules-to-save": ("gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied-lm-head-to-save": ("gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_merged_tensor_is_what_peft_merges(case: str, tiny: Tiny, tmp_path: Path) -> None:
    """Every tensor of the model, changed or not; and the config says whether the lm_head is tied."""
    family, settings = CASES[case]
    model = tiny(family)
    adapted = train_adapter(tmp_path / "adapter", model.oracle, **settings)
    checkpoint = open_checkpoint(tmp_path / "adapter", base=model.folder)
    expected = merged_tensors(adapted, model.config)
    tied = torch.equal(expected["lm_head.weight"], expected["model.embed_tokens.weight"])
    assert checkpoint.config["tie_word_embeddings"] is tied
    assert set(checkpoint.tensors) == set(expected) - ({"lm_head.weight"} if tied else set())
    for name in checkpoint.tensors:
        torch.testing.assert_close(
            checkpoint.read(name), expected[name], **_NEAR, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("tying", [False, True], ids=["", "ensure-tying"])
@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ids="+".join)
def test_the_function_of_a_merged_model_is_that_of_the_adapter(
    modules: list[str], tying: bool, tiny: Tiny, tmp_path: Path
) -> None:
    """Logits of the export equal those of PEFT's model before the merge, where its merge changes both tied tensors."""
    model = tiny("gemma2")
    adapted = train_adapter(
        tmp_path / "adapter", model.oracle, target_modules=["q_proj", *modules], ensure_weight_tying=tying
    )
    export(SourceOptions(str(tmp_path / "adapter"), base=str(model.folder)), tmp_path / "out")
    ids = torch.tensor([[5, 9, 41, 7]])
    with torch.inference_mode():
        wanted = adapted.eval()(ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_sixteen_bit_weights_are_rounded_once(tmp_path: Path) -> None:
    """The merge of a bfloat16 base is the float64 merge, rounded."""
    model = make_checkpoint(tmp_path / "base", "llama", dtype=torch.bfloat16)
    adapted = train_adapter(tmp_path / "adapter", model.oracle, target_modules=["q_proj"])
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = merged_tensors(adapted.double(), model.config)[name].to(torch.bfloat16)
    found = open_checkpoint(tmp_path / "adapter", base=model.folder).read(name)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_rslora": True, "bias": "all"},
    ],
    ids=["lora", "dora", "rank-stabilized-with-biases"],
)
def test_linears_that_are_stored_transposed_are_merged_as_peft_does(settings: dict[str, Any], tmp_path: Path) -> None:
    """GPT-2's Conv1D, tensor by tensor: no family of it is supported."""
    config = AutoConfig.for_model("gpt2", vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    adapted = train_adapter(tmp_path / "adapter", base, **settings)
    adapter = find_adapter(tmp_path / "adapter")
    assert adapter is not None
    before, expected = base.state_dict(), merged_tensors(adapted, {"model_type": "gpt2"})
    changes = adapter.changes({})
    assert len(changes) >= 4
    for name, parts in changes.items():
        tensor = before[name]
        for change in parts:
            assert change.shape_after(tuple(tensor.shape)) == tuple(tensor.shape)
            tensor = change.apply(tensor)
        torch.testing.assert_close(tensor, expected[name], **_NEAR)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_new_vocabulary_is_taken_over(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """Tokens that were added before the training: more rows, and the config counts them; tied stays tied."""
    model = tiny(family)
    adapted = train_adapter(
        tmp_path / "adapter", model.oracle, lambda base: base.resize_token_embeddings(104), target_modules=["q_proj"],
        modules_to_save=["embed_tokens"] + ([] if family == "gemma2" else ["lm_head"]),
    )  # fmt: skip
    checkpoint = open_checkpoint(tmp_path / "adapter", base=model.folder)
    assert checkpoint.config["vocab_size"] == 104
    assert checkpoint.config["tie_word_embeddings"] is model.config["tie_word_embeddings"]
    trained = adapted.base_model.model.model.embed_tokens.modules_to_save["default"].weight
    assert torch.equal(checkpoint.read("model.embed_tokens.weight"), trained.detach())


@pytest.mark.parametrize("where", ["folder", "file", "gguf-base"])
def test_an_adapter_is_a_folder_or_a_file_and_its_base_is_any_model(where: str, tiny: Tiny, tmp_path: Path) -> None:
    """A lone file has its settings beside it; a GGUF base gives the same tensors as its safetensors."""
    model = tiny("llama")
    adapted = train_adapter(tmp_path / "adapter", model.oracle, target_modules=["q_proj", "k_proj"])
    source, base = tmp_path / "adapter", model.folder
    if where == "file":
        source = source / "adapter_model.safetensors"
    if where == "gguf-base":
        base = tmp_path / "base.gguf"
        write_gguf(base, model)
    checkpoint = open_checkpoint(source, base=base)
    for name, wanted in merged_tensors(adapted, model.config).items():
        torch.testing.assert_close(checkpoint.read(name), wanted, **_NEAR)


@pytest.mark.parametrize("kind", ["fp8-blocks", "ct-packed-int4-groups", "ct-nvfp4"])
def test_a_quantized_base_is_dequantized_and_then_merged(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    """The value of the format's definition plus the product, both in NumPy's float64, rounded twice."""
    dense = quantize_checkpoint(tiny("llama").folder, tmp_path / "base", FORMATS[kind])
    train_adapter(tmp_path / "adapter", tiny("llama").oracle, target_modules=["q_proj"])
    checkpoint = open_checkpoint(tmp_path / "adapter", base=tmp_path / "base")
    stored = {name: tensor.double() for name, tensor in load_file(tmp_path / "adapter" / _WEIGHTS).items()}
    for layer in (0, 1):
        stem = f"model.layers.{layer}.self_attn.q_proj"
        product = stored[f"base_model.model.{stem}.lora_B.weight"] @ stored[f"base_model.model.{stem}.lora_A.weight"]
        wanted = torch.from_numpy(dense[f"{stem}.weight"]) + 12 / 4 * product
        torch.testing.assert_close(checkpoint.read(f"{stem}.weight").double(), wanted, **_NEAR)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", list(LINEARS)),
        ("qwen2", list(LINEARS)),
        ("phi3", ["qkv_proj", "gate_up_proj", "down_proj"]),
        ("llama", ["embed_tokens", "lm_head", "q_proj"]),
    ],
    ids=["llama", "qwen2", "phi3", "embeddings"],
)
def test_a_gguf_adapter_is_merged_like_the_peft_adapter_that_it_was(
    family: str, targets: list[str], tiny: Tiny, tmp_path: Path
) -> None:
    """llama.cpp's names and its order of query and key rows; the scale is alpha over the rank."""
    model = tiny(family)
    adapted = train_adapter(tmp_path / "adapter", model.oracle, target_modules=targets)
    write_gguf_adapter(tmp_path / "adapter.gguf", tmp_path / "adapter", model, alpha=12)
    checkpoint = open_checkpoint(tmp_path / "adapter.gguf", base=model.folder)
    for name, wanted in merged_tensors(adapted, model.config).items():
        torch.testing.assert_close(checkpoint.read(name), wanted, **_NEAR)


def test_an_export_records_base_and_adapter(tiny: Tiny, tmp_path: Path) -> None:
    """The sha256 of all files of both."""
    model, adapter = tiny("llama"), tmp_path / "adapter"
    train_adapter(adapter, model.oracle, target_modules=["q_proj"])
    export(SourceOptions(str(adapter), base=str(model.folder)), tmp_path / "out")
    recorded = {entry["name"]: entry["sha256"] for entry in Artifact.open(tmp_path / "out").manifest["source"]["files"]}
    files = [adapter / "adapter_model.safetensors", adapter / "adapter_config.json", model.folder / "model.safetensors"]
    assert recorded == {file.name: sha256(file) for file in files}


def test_commands_take_an_adapter_and_its_base_as_the_original(tiny: Tiny, tokens: Path, tmp_path: Path) -> None:
    """Converted, verified against both, healed; another adapter of the same base is not the original."""
    base = tiny("llama").folder
    for name, targets in (("adapter", ["q_proj"]), ("other", ["v_proj"])):
        train_adapter(tmp_path / name, tiny("llama").oracle, target_modules=targets)
    sizes = ["--rank", "6", "--layers", "all", "--calibration-tokens", "24", "--probe-sequences", "2"]
    out, adapter, other = tmp_path / "out", tmp_path / "adapter", tmp_path / "other"
    made = call("convert", adapter, "--base", base, "-o", out, "--calibration", tokens, *sizes, "--quiet")
    assert made.exit_code == 0, made.output
    verified = call("verify", out, "--against", adapter, "--base", base, "--json")
    assert verified.exit_code == 0, verified.output
    checks = {check["name"]: check["passed"] for check in json.loads(verified.stdout)["checks"]}
    assert checks["source.files"] and checks["source.slices"] and checks["source.tensors"]
    foreign = call("verify", out, "--against", other, "--base", base, "--no-torch", "--json")
    assert foreign.exit_code == 3
    assert "source.files" in foreign.stderr
    steps = ["--data", tokens, "--start", "als", "--steps", "0", "--data-tokens", "24", "--probe-sequences", "2"]
    healed = call("heal", out, "--against", adapter, "--base", base, "-o", tmp_path / "healed", *steps, "--quiet")
    assert healed.exit_code == 0, healed.output


def test_the_tokenizer_of_the_adapter_replaces_that_of_the_base(tiny: Tiny, tmp_path: Path) -> None:
    """All of its files together; what the adapter has none of stays the base's."""
    base = Path(shutil.copytree(tiny("llama").folder, tmp_path / "base"))
    train_adapter(tmp_path / "adapter", tiny("llama").oracle, target_modules=["q_proj"])
    for folder in (base, tmp_path / "adapter"):
        add_tokenizer(folder)
    (base / "vocab.json").write_text("{}")
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.5}')
    own = json.loads((tmp_path / "adapter" / "tokenizer_config.json").read_text())
    (tmp_path / "adapter" / "tokenizer_config.json").write_text(json.dumps({**own, "eos_token": "A"}))
    files = open_checkpoint(tmp_path / "adapter", base=base).companions()
    assert files.copied["tokenizer.json"].parent.name == "adapter"
    assert "vocab.json" not in files.copied.keys() | files.written.keys()
    assert files.special_tokens.end == (2, 36)
    assert json.loads(files.content("generation_config.json"))["temperature"] == 0.5


def _settings(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def _tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / _WEIGHTS
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        edit(tensors)
        save_file(tensors, path)

    return change


_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "ia3": (_settings(peft_type="IA3"), "peft_type 'IA3' is not read, only LORA; merge it with PEFT"),
    "prompts": (_settings(peft_type="PROMPT_TUNING"), "trains inputs beside the model.*give the base model itself"),
    "pissa": (_settings(init_lora_weights="pissa"), "init_lora_weights 'pissa' changed the base.*merge it with PEFT"),
    "replication": (_settings(layer_replication=[[0, 2]]), "layer_replication is .* not read; merge it with PEFT"),
    "activated": (_settings(alora_invocation_tokens=[1]), "alora_invocation_tokens is .* not read; merge it"),
    "experts": (_settings(target_parameters=["x"]), "target_parameters is .* not read; merge it with PEFT"),
    "unknown": (_settings(use_something_new=True), "use_something_new is True, which is not read; merge it"),
    "pattern": (_settings(rank_pattern={"(a+)+$": 4}), r"rank_pattern has '\(a\+\)\+\$', expected the end of a mod"),
    "rank": (_settings(r=8), r"lora_A.weight is \[4, 32\], adapter_config.json says rank 8"),
    "rank-zero": (_settings(r=0), "r is 0, expected a positive integer"),
    "alpha": (_settings(lora_alpha="x"), "lora_alpha is 'x', expected a number"),
    "alone": (_tensors(lambda t: t.pop(_A)), "q_proj.lora_A.weight is missing, and its counterpart is stored"),
    "shape": (_tensors(lambda t: t.update({_A: torch.ones(4, 16)})), r"does not fit the base's \[32, 32\]; give the"),
    "foreign": (_tensors(lambda t: t.update({"base_model.model.score.weight": torch.ones(2, 32)})),
                "changes the tensor score.weight, which the base .* does not have; give the base that it"),
    "no-lengths": (_settings(use_dora=True), "q_proj.lora_magnitude_vector is missing, .* says use_dora true; fetch"),
    "lengths": (_tensors(lambda t: t.update({_A.replace("A.weight", "magnitude_vector"): torch.ones(32)})),
                "q_proj.lora_magnitude_vector is stored, .* says use_dora false; fetch both"),
    "dtype": (_tensors(lambda t: t.update({_A: torch.ones(4, 32, dtype=torch.int8)})), "has dtype I8, expected F32"),
    "no-settings": (lambda folder: (folder / "adapter_config.json").unlink(), "without adapter_config.json beside it"),
    "no-weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "and no adapter_model.safetensors"),
    "mlx": (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapters.safetensors"),
            "an adapter of MLX.*mlx_lm.fuse"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_merge_cannot_honor_is_refused_by_name(case: str, tiny: Tiny, tmp_path: Path) -> None:
    """Other methods, settings that change the mathematics, and tensors that do not fit: one line."""
    damage, words = REFUSED[case]
    train_adapter(tmp_path / "adapter", tiny("llama").oracle, target_modules=["q_proj"])
    damage(tmp_path / "adapter")
    with pytest.raises((InputError, UnsupportedError), match=words) as caught:
        open_checkpoint(tmp_path / "adapter", base=tiny("llama").folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "file", "gguf"])
def test_an_adapter_without_its_base_is_named(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    """What it is, what to give, and what it calls its base; with a config.json beside it too."""
    folder = tmp_path / "adapter"
    train_adapter(folder, tiny("llama").oracle, target_modules=["q_proj"])
    _settings(base_model_name_or_path="org/name")(folder)
    shutil.copy(tiny("llama").folder / "config.json", folder)
    write_gguf_adapter(tmp_path / "adapter.gguf", folder, tiny("llama"), alpha=12)
    source = {"folder": folder, "file": folder / "adapter_model.safetensors", "gguf": tmp_path / "adapter.gguf"}[kind]
    with pytest.raises(InputError, match="a LoRA adapter, which changes a model and is none; pass --base") as caught:
        open_checkpoint(source)
    assert ("'org/name'" in str(caught.value)) is (kind != "gguf")


def test_a_model_takes_no_base(tiny: Tiny) -> None:
    """`--base` with a whole model is a mistake, and is said to be one."""
    with pytest.raises(InputError, match="no LoRA adapter, so there is nothing to merge"):
        open_checkpoint(tiny("llama").folder, base=tiny("llama").folder)


def test_an_adapter_beside_a_model_is_left_out_with_a_notice(llama: Path, tiny: Tiny, tmp_path: Path) -> None:
    """A folder with both is the model, unless a base is given."""
    train_adapter(llama, tiny("llama").oracle, target_modules=["q_proj"])
    assert "an adapter beside the model" in " ".join(open_checkpoint(llama).notices)
    assert "an adapter changes 2 tensors" in " ".join(open_checkpoint(llama, base=tiny("llama").folder).notices)
