"""Says what a file or folder is that holds no checkpoint, and what to give in its place.

Every advice here leads to a checkpoint that is read; a test follows each one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from curconvert.base.errors import CurConvertError, InputError, UnsupportedError
from curconvert.checkpoint.commands import save_file, save_pretrained

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE = "pickle files can run code and are not read; if you trust this one, "
_OF_TRAINING = ("training_args.bin", "optimizer.", "scheduler.", "rng_state", "trainer_state")
_PRETRAINED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_NO_LANGUAGE_MODEL = "curconvert converts language models in safetensors or GGUF"
_OTHER_FILES: Mapping[str, str] = {
    ".engine": "a TensorRT engine",
    ".h5": "TensorFlow weights",
    ".index": "TensorFlow weights",
    ".mlmodel": "a Core ML model",
    ".msgpack": "Flax weights",
    ".npz": "arrays of NumPy, as old versions of MLX store weights",
    ".onnx": "an ONNX model",
    ".pb": "a TensorFlow graph",
    ".pte": "an ExecuTorch program",
    ".tflite": "a TensorFlow Lite model",
}
_OTHER_GGUF: Mapping[str, str] = {
    "clip": "the image or sound part of a multimodal model",
    "imatrix": "statistics for a quantization (an importance matrix)",
    "mmproj": "the image or sound part of a multimodal model",
}
_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "RewardModel",
)


def other_file(path: Path) -> CurConvertError:
    """Return the error for a file whose name ends like no checkpoint's."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        return _pickle(path)
    if what := _OTHER_FILES.get(suffix):
        return UnsupportedError(f"{path}: {what}, from which no weights are read; give the model's safetensors or GGUF")
    return InputError(f"{path}: expected a .safetensors or .gguf file, a model folder or a hub id")


def refuse_folder(path: Path) -> None:
    """Refuse folders whose weights are readable and make no text.

    Raises:
        UnsupportedError: It is a sentence-transformers model or a diffusers pipeline.
    """
    if (path / "model_index.json").is_file():
        raise UnsupportedError(f"{path}: a diffusers pipeline, which makes images; {_NO_LANGUAGE_MODEL}")
    if (path / "modules.json").is_file() or (path / "config_sentence_transformers.json").is_file():
        raise UnsupportedError(
            f"{path}: a sentence-transformers model, which makes embeddings and no text; give the language model that "
            "it was made from"
        )


def refuse_heads(config: Mapping[str, Any], source: str) -> None:
    """Refuse the config of a model that ends in another head than a language model's.

    Raises:
        UnsupportedError: It does.
    """
    names = config.get("architectures")
    name = next((name for name in names if str(name).endswith(_HEADS)), None) if isinstance(names, list) else None
    if name is not None:
        raise UnsupportedError(
            f"{source}: a {name:.60}, which classifies and makes no text; give the language model that it was made from"
        )


def refuse_gguf(metadata: Mapping[str, Any], tensors: Collection[str], source: str) -> None:
    """Refuse GGUF files that hold no language model.

    Raises:
        UnsupportedError: It holds a vocabulary, the towers of a multimodal model, or statistics.
    """
    kinds = (str(metadata.get(key)) for key in ("general.type", "general.architecture"))
    what = next((_OTHER_GGUF[kind] for kind in kinds if kind in _OTHER_GGUF), None)
    if what is None and not tensors and any(key.startswith("tokenizer.") for key in metadata):
        what = "a vocabulary without weights"
    if what is not None:
        raise UnsupportedError(f"{source}: {what}; give the GGUF file of the language model")


def without_head(config: Mapping[str, Any]) -> str | None:
    """Return the class of a model that was saved without its lm_head; None for other models."""
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    return name if name.endswith("Model") else None


def nothing_to_open(path: Path) -> CurConvertError:
    """Return the error for a folder without weights that are read."""
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if not names:
        return InputError(f"{path}: an empty folder; download the model into it, or give another folder")
    if "consolidated.safetensors" in names or any(name.startswith("consolidated.") for name in names):
        return UnsupportedError(
            f"{path}: weights in the layout of their author (consolidated.*); give the model in the layout of Hugging "
            "Face, with config.json and model*.safetensors"
        )
    if weights := [name for name in names if name.endswith((".safetensors", ".gguf"))]:
        return InputError(f"{path}: holds no model.safetensors; name the file itself, such as {path / weights[0]}")
    if others := [*_pickles(names), *(name for name in names if Path(name).suffix.lower() in _OTHER_FILES)]:
        return other_file(path / others[0])
    if inner := _inner_model(path, names):
        return InputError(f"{path}: holds no weights; name the folder within it that does, such as {inner}")
    return InputError(
        f"{path}: holds neither model.safetensors nor another file of weights; download them, or give another folder"
    )


def _pickles(names: Sequence[str]) -> list[str]:
    """Return the pickles that hold weights, those of transformers first."""
    found = [name for name in names if name.endswith(PICKLES) and not name.startswith(_OF_TRAINING)]
    return sorted(found, key=lambda name: not name.startswith("pytorch_model"))


def _pickle(path: Path) -> UnsupportedError:
    folder = path.parent
    if (folder / "config.json").is_file() and any((folder / name).is_file() for name in _PRETRAINED):
        command = save_pretrained(folder, folder)
        return UnsupportedError(f"{path}: {_PICKLE}write model.safetensors beside it and give {folder}: {command}")
    target = path.with_suffix(".safetensors")
    config = "" if (folder / "config.json").is_file() else " with --config and the model's config.json"
    return UnsupportedError(
        f"{path}: {_PICKLE}write {target.name} and give {target}{config}: {save_file(path, target)}"
    )


def _inner_model(path: Path, names: Sequence[str]) -> Path | None:
    """Return a folder within this one that holds a model or an adapter, as hubs and training programs store them."""
    folders = [path / name for name in names if (path / name).is_dir()]
    if (path / "snapshots").is_dir():
        folders = [entry for entry in sorted((path / "snapshots").iterdir()) if entry.is_dir()]
    holding = [
        folder
        for folder in folders
        if any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
        and any(folder.glob("*.safetensors"))
    ]
    return max(holding, key=lambda folder: folder.stat().st_mtime, default=None)
