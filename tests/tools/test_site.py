"""The site: generated tables are complete, and addresses agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import ModuleType

import click
import pytest

import curconvert_schemas
from curconvert.cli import main
from curconvert.methods.core.registry import methods
from support.tools import load_tool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The hook."""
    return load_tool("site_tables")


def test_every_command_has_a_section_and_every_option_a_row(tool: ModuleType) -> None:
    """The reference of the command line is complete."""
    page = tool.on_page_markdown("# Title\n\n<!-- commands -->\n")
    sections = dict(re.findall(r"^## (\w+)$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert sections.keys() == main.commands.keys()
    for name, command in main.commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                assert re.search(rf"^\| `[^`]*{option.opts[0]}\b", sections[name], re.MULTILINE), (name, option.opts)


@pytest.mark.parametrize("name", main.commands)
def test_every_command_and_option_has_help(name: str) -> None:
    """A row without a text helps nobody."""
    command = main.commands[name]
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_the_help_of_convert_names_every_method() -> None:
    """The text is written by hand, because the registry is slow to import."""
    (option,) = (option for option in main.commands["convert"].params if option.name == "method")
    assert isinstance(option, click.Option)
    assert option.help is not None
    assert set(re.findall(r"[a-z-]+", option.help)) >= methods().keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tokens. [128]", ("Tokens.", "128")),
        ("Tokens.  [default: 5]", ("Tokens.", "5")),
        ("Or angular[:N]. [all]", ("Or angular[:N].", "all")),
        ("One of angular[:N]", ("One of angular[:N]", "")),
    ],
)
def test_a_default_is_what_ends_a_help_text_in_brackets(tool: ModuleType, text: str, expected: tuple[str, str]) -> None:
    """Brackets inside stay."""
    assert tool.split_default(text) == expected


def test_every_schema_has_a_table_of_its_fields(tool: ModuleType) -> None:
    """No schema file is left out."""
    files = (Path(curconvert_schemas.__file__).parent).glob("*.schema.json")
    assert sorted(tool.SCHEMAS) == sorted(path.name.removesuffix(".schema.json") for path in files)
    page = tool.on_page_markdown("<!-- schemas -->")
    for name in tool.SCHEMAS:
        assert f"### {name}\n" in page
        assert all(f"| `{field}` |" in page for field in curconvert_schemas.load_schema(name)["properties"])


def test_the_site_and_the_package_name_one_repository() -> None:
    """Links on the site and on the package index lead to the same place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (repository,) = re.findall(r"^repo_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert repository == project["urls"]["Source"]
    assert all(url == repository or url.startswith(f"{repository}/") for url in project["urls"].values())
