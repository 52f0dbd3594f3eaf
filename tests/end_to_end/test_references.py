"""What the runtime reads and renders by itself, beside the packages that define it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerFast

from curconvert_runtime import Artifact, Tokenizer
from curconvert_runtime.format.tensor_file import read_headers, read_tensor
from support.tiny_artifact import byte_tokenizer, reseal, toy_graph, toy_tensors, write_toy


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"])
def test_every_dtype_reads_as_the_reference_wrote_it(tmp_path: Path, dtype: str) -> None:
    """What safetensors writes comes back with the same dtype, shape and bits."""
    value = (np.random.default_rng(0).standard_normal((3, 5)) * 10).astype(dtype)
    save_file({"x": value, "scalar": np.zeros((), dtype), "empty": np.zeros((0, 4), dtype)}, tmp_path / "f")
    headers = read_headers(tmp_path / "f")
    np.testing.assert_array_equal(read_tensor(headers["x"]), value, strict=True)
    assert read_tensor(headers["scalar"]).shape == ()
    assert read_tensor(headers["empty"]).shape == (0, 4)


def test_toys_are_what_the_packages_would_write(tmp_path: Path) -> None:
    """The hand-written files of the runtime's tests are sound, and hold what they should."""
    folder = write_toy(tmp_path / "toy")
    for name, array in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(array, toy_tensors()[name])
    for kind, file in (("portable", "model.onnx"), ("fused", "model.fused.onnx")):
        onnx.checker.check_model(str(folder / file))
        found = onnx.load(folder / file, load_external_data=False).graph
        wanted = toy_graph(folder / "model.safetensors", kind)
        assert [node.op_type for node in found.node] == [node.op_type for node in wanted.node]
        assert [tensor.name for tensor in found.initializer] == [tensor.name for tensor in wanted.initializer]


TEMPLATES = {
    "roles": """{%- for message in messages -%}
    {%- if message.role == 'system' and not loop.first -%}
        {{ raise_exception('system comes first') }}
    {%- endif -%}
    {{- '<|' + message.role + '|>\\n' + message.content | trim + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif -%}
""",
    "namespace": """{% set ns = namespace(n=0) %}
{% for message in messages if message['role'] != 'system' %}
  {% set ns.n = ns.n + 1 %}
{{ bos_token if loop.first }}[{{ ns.n }}] {{ message['content'] }}
{% endfor %}
""",
    "json": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ unknown | default('none') }}",
    "generation": """{% for m in messages %}
{% if m.role == 'assistant' %}
{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}
{% else %}
{{ m.content }}
{% endif %}
{% endfor %}""",
    "control": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_transformers_renders_them(tmp_path: Path, name: str) -> None:
    """The prompt of a conversation is the one that transformers makes from the same template."""
    messages = [
        {"role": "system", "content": " Answer <briefly> & in \u00dcbung. "},
        {"role": "user", "content": "two\nlines\n"},
        {"role": "assistant", "content": "'quoted' \"text\""},
        {"role": "user", "content": "\U0001f642"},
    ]
    toy = write_toy(tmp_path / "toy")
    (toy / "chat_template.jinja").write_text(TEMPLATES[name])
    reseal(toy)
    reference = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), bos_token="<s>", eos_token="</s>")
    expected = reference.apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
    )
    assert Tokenizer(Artifact.open(toy)).render_chat(messages) == expected
