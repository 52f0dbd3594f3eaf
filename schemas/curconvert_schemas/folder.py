"""Says what an artifact's folder may hold beside its sealed files, and where the links in a model's folder may lead."""

from __future__ import annotations

import re
import stat
from pathlib import Path

# Documents and pictures by their suffix; legal texts by their name, often without a suffix.
_FOR_PEOPLE = re.compile(
    r"report\.html|[\w .-]+\.(md|pdf|png|jpe?g|gif|webp|svg)"
    r"|[\w -]*(readme|licen[cs]e|notice|copying|copyright|policy|citation|authors)[\w -]*(\.\d+)*(\.(txt|rst|cff))?",
    re.IGNORECASE,
)


def is_for_people(name: str) -> bool:
    """Tell whether a file is for people, not for programs: a card, a license, a picture.

    Such files are not sealed: anyone may edit, add or remove them. No program loads a file with such a name.
    """
    return _FOR_PEOPLE.fullmatch(name) is not None


def link_boundary(folder: Path) -> Path:
    """Return the folder that symbolic links in a resolved folder must not leave.

    It is the folder itself. In a Hugging Face cache it is the repository's cache folder, because a snapshot consists of
    links to its `blobs`.
    """
    for parent in folder.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent
    return folder


def regular_size(path: Path) -> int:
    """Return the size of a regular file in a resolved folder. It may be a link that stays inside `link_boundary`.

    Raises:
        ValueError: It is something else; says what, and what to do.
    """
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError):  # also a loop of links
        raise ValueError("missing; copy the whole folder again or convert the model again") from None
    if not real.is_relative_to(link_boundary(path.parent)):
        raise ValueError("a link to a file outside its folder; replace the link with a copy of the file")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file (a pipe or a folder); replace it with a copy")
    return status.st_size
