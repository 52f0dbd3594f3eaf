"""The tutorial works: every command of it, in order, exits and prints as the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.checkpoints import edit_tensors
from support.documents import ROOT, Step, first_difference, run_step, steps
from support.families import make_checkpoint
from support.tiny_runs import add_tokenizer

TUTORIAL = ROOT / "docs" / "tutorial.md"
MODEL = Path(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")


def run_tutorial(folder: Path) -> None:
    """Run the page in a folder that holds the model, and see that what it promises is there."""
    found = steps(TUTORIAL)
    assert len(found) >= 8
    for step in found:
        run_step(step, folder)
    assert "<testsuite" in (folder / "verify.xml").read_text()


def test_every_command_does_what_the_tutorial_says(tmp_path: Path) -> None:
    """With a random model in the real one's place: as small as rank 128 allows, and k_proj too small for it.

    Its logits are scaled so that the loss is between the two limits of the page.
    """
    checkpoint = make_checkpoint(
        tmp_path / MODEL, "llama", num_hidden_layers=5, hidden_size=512, intermediate_size=512, head_dim=128,
        num_key_value_heads=1, max_position_embeddings=256,
    )  # fmt: skip
    edit_tensors(checkpoint.folder, lambda tensors: tensors["lm_head.weight"].mul_(0.2))
    add_tokenizer(checkpoint.folder)
    run_tutorial(tmp_path)


@pytest.mark.slow
@pytest.mark.model
def test_every_command_does_what_the_tutorial_says_with_the_real_model(tmp_path: Path) -> None:
    """Numbers apart, what the page shows is what SmolLM2 gives."""
    (tmp_path / MODEL).parent.mkdir(parents=True)
    (tmp_path / MODEL).symlink_to(ROOT / MODEL)
    run_tutorial(tmp_path)


PAGE = """
<!-- not run: installs -->
```bash
make demo
```

<!-- exit: 3 -->
```bash
false
```

```text
nothing
```

```bash
date
```

<!-- not compared: differs each time -->
```text
today
```
"""


def test_a_page_says_what_a_step_is(tmp_path: Path) -> None:
    """Its exit code, what it prints, and what a test leaves out."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert steps(page) == [Step(7, "false\n", 3, "nothing\n"), Step(16, "date\n", 0, None)]


@pytest.mark.parametrize("step", [Step(1, "false; true\n", 0, None), Step(1, "echo a\n", 0, "b\n")])
def test_a_step_that_does_otherwise_fails(step: Step, tmp_path: Path) -> None:
    """A command that fails inside a block, and another output."""
    with pytest.raises(AssertionError, match="line 1"):
        run_step(step, tmp_path)


@pytest.mark.parametrize(
    ("shown", "printed", "difference"),
    [
        ("KL 0.1  ok\n", "KL 1.2e-05 ok", None),
        ("a\n…\nc\n", "a\nb\nb\nc", None),
        ("a … c\n", "a b c", None),
        ("a\nc\n", "a\nb\nc", "c"),
        ("a\n", "a\nb", "the end, but: b"),
        ("a\nb\n", "a", "b"),
    ],
)
def test_a_difference_is_found(shown: str, printed: str, difference: str | None) -> None:
    """Other numbers and other spaces are none; a line more, less or different is one."""
    assert first_difference(shown, printed) == difference
