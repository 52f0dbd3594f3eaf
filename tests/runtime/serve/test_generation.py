"""Generation: greedy equals the argmax chain, batches equal single rows, stops stop, streams join to the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curconvert_runtime import Completion, GenerationOptions, InputError, Session, UnsupportedError, load, stream
from curconvert_runtime.serve.generation import end_tokens
from support.tiny_artifact import BOS, CONTEXT, EOS, reseal, toy_logits, toy_tensors

PROMPTS = [[1, 2, 3, 4, 5], [7], [250, 260, 3]]


def greedy(prompt: list[int], count: int) -> tuple[int, ...]:
    """Return the argmax chain in float64, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(toy_logits(ids, toy_tensors())[-1].argmax()))
    return tuple(ids[len(prompt) :])


def one(result: Any) -> Completion:
    assert isinstance(result, Completion)
    return result


def test_greedy_is_the_argmax_chain(session: Session) -> None:
    """Eight greedy tokens are those of the float64 model."""
    result = one(session.generate(PROMPTS[0], GenerationOptions(max_new_tokens=8)))
    assert result.ids == greedy(PROMPTS[0], 8)
    assert result.finish_reason == "length"
    assert result.prompt_ids == tuple(PROMPTS[0])


def test_a_batch_of_unequal_prompts_equals_its_rows(session: Session) -> None:
    """Neighbors in a batch, finished or not, do not change a row."""
    options = GenerationOptions(max_new_tokens=8)
    batch = session.generate(PROMPTS, options)
    assert [row.ids for row in batch] == [greedy(prompt, 8) for prompt in PROMPTS]


def test_text_is_encoded_as_the_post_processor_says(session: Session) -> None:
    """A text prompt gets its beginning-of-sequence token from the tokenizer file."""
    result = one(session.generate('!"', GenerationOptions(max_new_tokens=1)))
    assert result.prompt_ids == (BOS, 0, 1)


def test_texts_and_ids_mix_in_a_batch(session: Session) -> None:
    """Each prompt of a list is taken for what it is."""
    batch = session.generate(["!", [BOS, 0], np.array([BOS, 0], np.int32)], GenerationOptions(max_new_tokens=2))
    assert len({row.ids for row in batch}) == 1


def test_a_list_with_one_prompt_gives_a_list(session: Session) -> None:
    """The shape of the answer follows the shape of the question."""
    assert isinstance(session.generate([[1, 2]], GenerationOptions(max_new_tokens=1)), list)
    assert isinstance(session.generate(np.array([[1, 2]]), GenerationOptions(max_new_tokens=1)), list)


def with_end(toy: Path, name: str, value: object) -> Session:
    (toy / name).write_text(json.dumps({"eos_token_id": value}))
    reseal(toy)
    return load(toy, threads=1)


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_end_token_ends_its_row_only(toy: Path, name: str, as_list: bool) -> None:
    """The ended row stays as it was while the others go on; the end token is not part of the result."""
    chain = greedy(PROMPTS[0], 6)
    end = chain[1]
    others = [greedy(prompt, 6) for prompt in PROMPTS[1:]]
    assert all(end not in row for row in others)
    batch = with_end(toy, name, [end, EOS] if as_list else end).generate(PROMPTS, GenerationOptions(max_new_tokens=6))
    assert batch[0].ids == chain[: chain.index(end)]
    assert batch[0].finish_reason == "eos"
    assert [row.ids for row in batch[1:]] == others


def test_end_tokens_can_be_ignored(toy: Path) -> None:
    """A benchmark wants a fixed number of tokens."""
    chain = greedy(PROMPTS[0], 4)
    session = with_end(toy, "config.json", chain[0])
    assert one(session.generate(PROMPTS[0], GenerationOptions(max_new_tokens=4, ignore_eos=True))).ids == chain


@pytest.mark.parametrize("value", [None, "2", True, [None]])
def test_an_odd_end_token_is_no_end_token(toy: Path, value: object) -> None:
    """A config without a usable end token ends nothing."""
    assert end_tokens(with_end(toy, "config.json", value).artifact) == frozenset()


def test_a_stop_text_ends_the_row_and_is_cut(session: Session) -> None:
    """The text ends before the stop text, wherever the token borders are."""
    options = GenerationOptions(max_new_tokens=12, temperature=3.0, top_k=60, seed=5)
    whole = one(session.generate("Hi", options)).text
    stop = whole[3:5]
    stopped = one(session.generate("Hi", GenerationOptions(**{**vars(options), "stop": (stop, "never")})))
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


def test_streamed_pieces_join_to_the_text(session: Session) -> None:
    """What a stream shows is the final text, and no piece holds a part of the stop text."""
    options = GenerationOptions(max_new_tokens=12, temperature=3.0, top_k=60, seed=5)
    stop = one(session.generate("Hi", options)).text[5:7]
    options = GenerationOptions(**{**vars(options), "stop": (stop,)})
    shown = ["", ""]
    completions: dict[int, Completion] = {}
    for piece in stream(session, ["Hi", "Ho"], options):
        shown[piece.row] += piece.text
        if piece.completion:
            completions[piece.row] = piece.completion
    assert shown == [completions[0].text, completions[1].text]


def test_the_callback_sees_rows_and_text(session: Session) -> None:
    """A caller can follow each row while the batch runs."""
    shown = {0: "", 1: ""}

    def on_text(row: int, text: str) -> None:
        shown[row] += text

    options = GenerationOptions(max_new_tokens=5, temperature=1.0, top_k=20)
    batch = session.generate(["a", "bcd"], options, on_text)
    assert shown == {0: batch[0].text, 1: batch[1].text}


def test_sampling_depends_on_the_seed_alone(session: Session) -> None:
    """The same seed gives the same tokens; another seed others."""
    options = GenerationOptions(max_new_tokens=10, temperature=5.0)
    first, second = (one(session.generate([1, 2], options)).ids for _ in range(2))
    other = one(session.generate([1, 2], GenerationOptions(max_new_tokens=10, temperature=5.0, seed=1))).ids
    assert first == second != other


def test_generation_ends_where_the_context_ends(session: Session) -> None:
    """The last position of the context is used, and nothing beyond it."""
    prompt = list(range(CONTEXT - 2))
    result = one(session.generate(prompt, GenerationOptions(max_new_tokens=50)))
    assert result.ids == greedy(prompt, 3)
    assert result.finish_reason == "context"


def test_a_conversation_goes_through_the_template(session: Session) -> None:
    """A list of messages is rendered by the chat template, without further special tokens."""
    talk = [{"role": "user", "content": "x"}]
    by_messages = one(session.generate(talk, GenerationOptions(max_new_tokens=1)))
    by_option = one(session.generate("x", GenerationOptions(max_new_tokens=1, chat=True)))
    assert by_messages == by_option
    assert len(by_messages.prompt_ids) == len("[user]x>")


def test_an_artifact_without_tokenizer_takes_ids_only(toy: Path) -> None:
    """Ids work without a tokenizer; text asks for one."""
    (toy / "tokenizer.json").unlink()
    reseal(toy)
    session = load(toy, threads=1)
    result = one(session.generate([1, 2], GenerationOptions(max_new_tokens=2)))
    assert (result.ids, result.text) == (greedy([1, 2], 2), "")
    for arguments in (("text",), ([1], GenerationOptions(stop=("x",)))):
        with pytest.raises(UnsupportedError, match="tokenizer"):
            session.generate(*arguments)


@pytest.mark.parametrize(
    "prompt", [[], "", [""], [[]], np.zeros((0,), np.int64), None, 3, [[1], []], [[[1]]], b"x", {}]
)
def test_prompts_that_are_none_are_refused(toy_without_bos: Session, prompt: Any) -> None:
    """Nothing to continue is an input error, in a batch too."""
    with pytest.raises(InputError):
        toy_without_bos.generate(prompt)


@pytest.fixture
def toy_without_bos(toy: Path) -> Session:
    """A toy whose tokenizer gives no token for an empty text."""
    tokenizer = json.loads((toy / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (toy / "tokenizer.json").write_text(json.dumps(tokenizer))
    reseal(toy)
    return load(toy, threads=1)


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": True},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "1"},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"seed": -1},
        {"stop": "x"},
        {"stop": ("",)},
        {"stop": (1,)},
    ],
)
def test_options_without_a_meaning_are_refused(values: dict[str, Any]) -> None:
    """Options are checked when they are made."""
    with pytest.raises(InputError, match=next(iter(values))):
        GenerationOptions(**values)
