"""The model card and the HTML report: names from files stay names, whatever they hold."""

from __future__ import annotations

import html
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from curconvert.artifact.card import write_reports
from support.tiny_artifact import toy_manifest

METRICS = {
    "text": "4 sequences", "kl_lower_bound": dict.fromkeys(("mean", "median", "p90", "p99", "max"), 0.1),
    "perplexity_original": 2.0, "perplexity_compressed": 2.5, "perplexity_ratio": 1.25, "top1": 0.9,
}  # fmt: skip
CALIBRATION = {"source": "builtin", "token_sha256": "b" * 64, "sequences": 128, "tokens_per_sequence": 128}


def reports(folder: Path, hostile: str | None = None) -> tuple[str, str]:
    """Write the card and the report of a toy, with a text in every free field of its manifest, and read them."""
    manifest: dict[str, Any] = toy_manifest() | {"calibration": dict(CALIBRATION), "metrics": dict(METRICS)}
    manifest["options"] = {"method": "cur", "rank": 2}
    manifest = json.loads(json.dumps(manifest))
    if hostile is not None:
        for place, key in (
            (manifest["source"], "name"), (manifest["model"], "model_type"), (manifest["calibration"], "source"),
            (manifest["metrics"], "text"), (manifest["options"], "method"), (manifest["options"], "rank"),
            (manifest["matrices"][0], "name"), (manifest["matrices"][1], "name"), (manifest["matrices"][1], "reason"),
            (manifest["matrices"][0]["bound"], "matrix"),
        ):  # fmt: skip
            place[key] = hostile
    write_reports(folder, manifest)
    return (folder / "README.md").read_text(encoding="utf-8"), (folder / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Collects the tags and the text of a document."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """Note a tag."""
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data


def rendered(card: str) -> str:
    """Return a card as HTML, by an independent implementation of CommonMark."""
    return MarkdownIt("commonmark").enable("table").render(card)


MARKUP = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert)", "![x](http://evil/x.png)",
    "www.evil.example", "**bold** | cell", "`` ` <b>", "`<b>", "a```<i>b``", "&lt;b&gt; $x$",
    "  spaces ", "` `", "a\\`b",
]  # fmt: skip


@pytest.mark.parametrize("name", MARKUP)
def test_markup_in_names_has_no_effect(tmp_path: Path, name: str) -> None:
    """Both files have the same tags as with a plain name, and show the name's own characters."""
    hostile, usual = reports(tmp_path, name), reports(tmp_path, "plain")
    for found, plain in ((rendered(hostile[0]), rendered(usual[0])), (hostile[1], usual[1])):
        assert Tags(found).tags == Tags(plain).tags
        assert name in Tags(found).text
    assert f"<code>{html.escape(name)}</code>, compressed" in rendered(hostile[0])


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "a\rb", "\x00", "\x9b2J", "\u202ex", "a\u2028# b", "\udcff"])
def test_control_characters_are_replaced(tmp_path: Path, name: str) -> None:
    """Neither file holds them, and no name begins a line of its own."""
    found, usual = reports(tmp_path, name), reports(tmp_path)
    for text, plain in zip(found, usual, strict=True):
        assert not any(character != "\n" and not character.isprintable() for character in text)
        assert text.count("\n") == plain.count("\n")
        assert "�" in text


def test_a_manifest_that_says_less_gets_a_card(tmp_path: Path) -> None:
    """Options are free, and the text may be missing, in an artifact that somebody else made."""
    write_reports(tmp_path, toy_manifest() | {"options": {}})
    assert "Method `None`.\n" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_usual_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """A sound card reads well."""
    card, report = reports(tmp_path)
    assert card.startswith("# `toy.safetensors`, compressed by curconvert\n")
    assert "family `toy`" in card
    assert "rank at most 2, calibrated on 128 × 128 tokens of `builtin`." in card
    assert "On 4 sequences:" in card
    assert "<h1>toy.safetensors</h1>" in report
