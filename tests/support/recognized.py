"""What people give in the place of a checkpoint: how it comes about, and how to do what its message says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter
from peft import IA3Config, LoHaConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from support.adapters import train_adapter
from support.checkpoints import edit_config, edit_tensors
from support.families import TinyModel
from support.gguf_files import write_gguf

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 269060552\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
Q_PROJ = "model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Given:
    """One thing that is no checkpoint.

    Attributes:
        make: Turns a copy of a sound model into it, and returns the path to give; None for the model's folder.
        code: Exit code.
        words: What the message holds.
        family: Family of the model.
    """

    make: Callable[[Path, TinyModel], Path | None]
    code: int
    words: str
    family: str = "llama"


def _write(name: str, content: str | bytes) -> Callable[[Path, TinyModel], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder, _: (folder / name).write_bytes(data) and None


def _named(name: str, content: bytes = b"\0") -> Callable[[Path, TinyModel], Path]:
    """A file beside the model, given by itself."""

    def make(folder: Path, _: TinyModel) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _instead(name: str, content: str = "?") -> Callable[[Path, TinyModel], None]:
    """Another file in the place of the safetensors."""

    def make(folder: Path, _: TinyModel) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_text(content)

    return make


def _pickled(name: str, *, nested: bool = False, alone: bool = False) -> Callable[[Path, TinyModel], Path | None]:
    def make(folder: Path, _: TinyModel) -> Path | None:
        tensors: Any = load_file(folder / "model.safetensors")
        torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, folder / name)
        (folder / "model.safetensors").unlink()
        return folder / name if alone else None

    return make


def _pickled_shards(folder: Path, _: TinyModel) -> None:
    tensors = load_file(folder / "model.safetensors")
    names, weight_map = sorted(tensors), {}
    for number in (1, 2):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in names[number - 1 :: 2]}, folder / file)
        weight_map |= dict.fromkeys(names[number - 1 :: 2], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def _saved_by_torch(folder: Path, _: TinyModel) -> None:
    path = folder / "model.safetensors"
    torch.save({name: tensor.clone() for name, tensor in load_file(path).items()}, path)


def _gguf(path: str, kind: str | None = None) -> Callable[[Path, TinyModel], Path]:
    """A GGUF file without tensors, or a whole one under another name."""

    def make(folder: Path, model: TinyModel) -> Path:
        target = folder.parent / path
        if kind is None:
            write_gguf(target, model)
            return target
        writer = GGUFWriter(target, "clip" if kind == "clip" else "llama")
        if kind in ("imatrix", "mmproj"):
            writer.add_string("general.type", kind)
        writer.add_tokenizer_model("gpt2")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return target

    return make


def _adapter(kind: str) -> Callable[[Path, TinyModel], Path]:
    def make(folder: Path, model: TinyModel) -> Path:
        target = folder.parent / "adapter"
        if kind in ("lora", "pickled"):
            train_adapter(target, model.oracle, target_modules=["q_proj"])
        else:
            settings: dict[str, Any] = {
                "ia3": IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
                "loha": LoHaConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"),
                "prompts": PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
            }
            base = AutoModelForCausalLM.from_pretrained(folder)
            get_peft_model(base, settings[kind]).save_pretrained(target)
        if kind == "pickled":
            weights = target / "adapter_model.safetensors"
            torch.save(load_file(weights), target / "adapter_model.bin")
            weights.unlink()
        return target

    return make


def _mlx_adapter(folder: Path, model: TinyModel) -> Path:
    target = _adapter("lora")(folder, model)
    (target / "adapter_model.safetensors").rename(target / "adapters.safetensors")
    return target


def _quantized(**config: Any) -> Callable[[Path, TinyModel], None]:
    def make(folder: Path, _: TinyModel) -> None:
        edit_config(folder, **config)
        edit_tensors(folder, lambda stored: stored.update({f"{Q_PROJ}.scales": torch.ones(4, 4)}))

    return make


def _within(name: str) -> Callable[[Path, TinyModel], Path]:
    """The folder around the model's."""

    def make(folder: Path, _: TinyModel) -> Path:
        outer = folder.parent / "outer"
        shutil.copytree(folder, outer / name)
        return outer

    return make


def _empty(folder: Path, _: TinyModel) -> Path:
    (folder.parent / "empty").mkdir()
    return folder.parent / "empty"


def _artifact(folder: Path, _: TinyModel) -> None:
    edit_config(folder, quantization_config={"quant_method": "curconvert", "version": 1, "matrices": {}})


def _artifact_file(folder: Path, model: TinyModel) -> Path:
    _artifact(folder, model)
    return folder / "model.safetensors"


def _headless(folder: Path, _: TinyModel) -> None:
    edit_config(folder, architectures=["LlamaModel"])
    edit_tensors(folder, lambda stored: stored.pop("lm_head.weight"))


_MARK = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
GIVEN: dict[str, Given] = {
    # pointers of Git LFS
    "lfs-weights": Given(_write("model.safetensors", LFS), 2, "a Git LFS pointer to 269060552 bytes; run git lfs pull"),
    "lfs-config": Given(_write("config.json", LFS), 2, "config.json: a Git LFS pointer"),
    "lfs-tokenizer": Given(_write("tokenizer.json", LFS), 2, "tokenizer.json: a Git LFS pointer"),
    "lfs-sentencepiece": Given(_write("tokenizer.model", LFS), 2, "tokenizer.model: a Git LFS pointer"),
    "lfs-index": Given(_instead("model.safetensors.index.json", LFS), 2, "index.json: a Git LFS pointer"),
    "lfs-gguf": Given(_named("model.gguf", LFS.encode()), 2, "model.gguf: a Git LFS pointer"),
    # pages and answers of servers
    "page-weights": Given(_write("model.safetensors", PAGE), 2, "a web page; download the file itself"),
    "page-config": Given(_write("config.json", PAGE), 2, "config.json: a web page"),
    "page-tokenizer": Given(_write("tokenizer.json", PAGE), 2, "tokenizer.json: a web page"),
    "answer": Given(_write("model.safetensors", "Entry not found"), 2, "a text, 'Entry not found'; download the file"),
    "refusal": Given(_write("model.safetensors", '{"error":"Access is restricted"}'), 2, "a text, '{\"error\""),
    "empty-file": Given(_write("model.safetensors", b""), 2, "an empty file; download it again"),
    "zeros": Given(_write("model.safetensors", bytes(5000)), 2, "a file of zeros, as an interrupted download"),
    # another format under this name
    "torch-as-safetensors": Given(_saved_by_torch, 2, "a file of torch.save; if you trust it"),
    "gguf-as-safetensors": Given(_gguf("model.safetensors"), 2, "a GGUF file; rename it to model.gguf", "qwen2"),
    "safetensors-as-gguf": Given(
        lambda folder, _: shutil.copy(folder / "model.safetensors", folder / "model.gguf"), 2,
        "a safetensors file; rename it to model.safetensors",
    ),
    # pickles
    "bin": Given(_pickled("pytorch_model.bin"), 5, "pickle files can run code and are not read"),
    "bin-itself": Given(_pickled("pytorch_model.bin", alone=True), 5, "pickle files can run code"),
    "bin-shards": Given(_pickled_shards, 5, "write model.safetensors beside it"),
    "pt": Given(_pickled("model.pt"), 5, "model.pt: pickle files can run code"),
    "pth-itself": Given(_pickled("consolidated-1.pth", alone=True), 5, "consolidated-1.pth: pickle files"),
    "ckpt": Given(_pickled("last.ckpt", nested=True), 5, "last.ckpt: pickle files can run code"),
    "pickled-adapter": Given(_adapter("pickled"), 5, "adapter_model.bin: pickle files can run code"),
    # other formats
    "onnx": Given(_named("model.onnx"), 5, "an ONNX model, from which no weights are read"),
    "onnx-folder": Given(_instead("decoder.onnx"), 5, "decoder.onnx: an ONNX model"),
    "tensorflow": Given(_instead("tf_model.h5"), 5, "tf_model.h5: TensorFlow weights"),
    "flax": Given(_instead("flax_model.msgpack"), 5, "flax_model.msgpack: Flax weights"),
    "savedmodel": Given(_instead("saved_model.pb"), 5, "saved_model.pb: a TensorFlow graph"),
    "old-mlx": Given(_instead("weights.npz"), 5, "weights.npz: arrays of NumPy, as old versions of MLX"),
    "consolidated": Given(_instead("consolidated.00.pth"), 5, "weights in the layout of their author"),
    "consolidated-safetensors": Given(_instead("consolidated.safetensors"), 5, "weights in the layout of their author"),
    "vocabulary": Given(_gguf("vocab.gguf", "vocabulary"), 5, "a vocabulary without weights"),
    "projector": Given(_gguf("mmproj.gguf", "mmproj"), 5, "the image or sound part of a multimodal model"),
    "old-projector": Given(_gguf("clip.gguf", "clip"), 5, "the image or sound part of a multimodal model"),
    "imatrix": Given(_gguf("imatrix.gguf", "imatrix"), 5, "statistics for a quantization"),
    # quantized
    "gptq": Given(_quantized(quantization_config={"quant_method": "gptq"}), 5, "quantized with GPTQ, which"),
    "awq": Given(_quantized(quantization_config={"quant_method": "awq"}), 5, "quantized with AWQ, which"),
    "bitsandbytes": Given(_quantized(quantization_config={"load_in_4bit": True}), 5, "quantized with bitsandbytes"),
    "mlx": Given(_quantized(quantization={"group_size": 64, "bits": 4}), 5, "quantized by MLX, which is not read"),
    "unknown-scales": Given(_quantized(), 5, "q_proj.scales belongs to a quantized checkpoint"),
    "only-the-config": Given(
        lambda folder, _: edit_config(folder, quantization_config={"quant_method": "hqq"}), 5, "with HQQ, and none is",
    ),
    # models that make no text
    "sentence-transformers": Given(_write("modules.json", json.dumps([_MARK])), 5, "makes embeddings and no text"),
    "classifier": Given(
        lambda folder, _: edit_config(folder, architectures=["LlamaForTokenClassification"]), 5, "classifies and makes",
    ),
    "headless": Given(_headless, 5, "a LlamaModel, saved without its lm_head"),
    "diffusers": Given(_write("model_index.json", "{}"), 5, "a diffusers pipeline, which makes images"),
    # adapters
    "adapter": Given(_adapter("lora"), 2, "a LoRA adapter, which changes a model and is none; pass --base"),
    "mlx-adapter": Given(_mlx_adapter, 5, "an adapter of MLX, which is not read"),
    "ia3": Given(_adapter("ia3"), 5, "peft_type 'IA3' is not read, only LORA"),
    "loha": Given(_adapter("loha"), 5, "peft_type 'LOHA' is not read, only LORA"),
    "prompts": Given(_adapter("prompts"), 5, "trains inputs beside the model"),
    # folders
    "empty-folder": Given(_empty, 2, "an empty folder; download the model into it"),
    "no-weights": Given(_instead("training_args.bin"), 2, "holds neither model.safetensors nor another file"),
    "trainer": Given(_within("checkpoint-500"), 2, "name the folder within it that does, such as"),
    "cache": Given(_within("snapshots/0123abc"), 2, "name the folder within it that does, such as"),
    "other-name": Given(
        lambda folder, _: (folder / "model.safetensors").rename(folder / "weights.safetensors") and None, 2,
        "name the file itself, such as",
    ),
    "artifact": Given(_artifact, 5, "is an artifact, already compressed"),
    "artifact-file": Given(_artifact_file, 5, "is an artifact, already compressed"),
}  # fmt: skip
"""What is recognized, by a name of its own."""


def as_printed(message: str, home: Path) -> str:
    """Return the line that a user sees, with paths as seen from the folder in which everything lies."""
    return f"error: {message}".replace(f"{home}/", "")


def follow(message: str, source: Path, model: TinyModel) -> tuple[Path, dict[str, Any]]:
    """Do what a message says.

    Args:
        message: The message.
        source: What was given.
        model: The sound model that it was made from.

    Returns:
        What to open then, and the options for it.
    """
    if " python -c " in message:
        exec(shlex.split(message.partition(": python -c ")[2])[0], {})
        given = re.search(r" give (\S+?)( with --(config|base) [^:]*)?: ", message)
        assert given is not None
        options = {"config": {"config": model.folder / "config.json"}, "base": {"base": model.folder}}
        return Path(given[1]), options.get(given[3], {})
    if match := re.search(r"rename it to (\S+)", message):
        return source.rename(source.with_name(match[1])), {"config": model.folder / "config.json"}
    if match := re.search(r"such as (\S+)$", message):
        return Path(match[1]), {}
    if match := re.search(r"--config-set (\w+)=(\w+)", message):
        return source, {"config_set": {match[1]: match[2]}}
    if "pass --base" in message:
        return source, {"base": model.folder}
    if "merge it with PEFT" in message:
        return _merged_by_peft(source, model), {}
    if "download the file" in message or "download it again" in message:
        return _downloaded(message, source, model), {}
    if (
        re.search(r"give (the|another|a) ", message)
        or "converts language models" in message
        or "give the base" in message
    ):
        return model.folder, {}
    raise AssertionError(f"this message gives no advice: {message}")


def _merged_by_peft(source: Path, model: TinyModel) -> Path:
    target = source.parent / "merged"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model.folder), str(source))
        adapted.merge_and_unload().save_pretrained(target)
    return target


def _downloaded(message: str, source: Path, model: TinyModel) -> Path:
    """Put the right file in the place of the one that the message names first."""
    path = Path(message.partition(": ")[0])
    path.unlink()
    if (model.folder / path.name).is_file():
        shutil.copy(model.folder / path.name, path)
    elif path.suffix == ".gguf":
        write_gguf(path, model)
    elif path.name == "model.safetensors.index.json":
        shutil.copy(model.folder / "model.safetensors", path.parent)
    return source
