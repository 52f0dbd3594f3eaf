"""Small chat templates in the styles of published models, and conversations for them."""

from __future__ import annotations

from typing import Any

STYLES = {
    "llama-3.1": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message }}{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim
            + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one tool call at once") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
""",
    "qwen-2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You help.' }}{%- endif %}
    {{- "\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or
           (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
    "qwen-3": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
           not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}
    {%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') }}
            {{- '\\n</think>\\n\\n' }}
        {%- else %}{{- '<|im_start|>' + message.role + '\\n' }}{%- endif %}
        {% generation %}{{- content.lstrip('\\n') + '<|im_end|>\\n' }}{% endgeneration %}
    {%- else %}{{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>' ~ '\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{%- set first = messages[0]['content'] + '\\n\\n' %}
{%- set loop_messages = messages[1:] %}{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}
{%- for message in loop_messages | selectattr('role', 'in', ['user', 'assistant']) %}
    {%- if (message['role'] == 'assistant') %}{% set role = 'model' %}
    {%- else %}{% set role = message['role'] %}{% endif %}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if message['content'] is string %}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable %}
        {%- for item in message['content'] %}
            {%- if item['type'] == 'image' %}{{ '<image>' }}
            {%- elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}
        {%- endfor %}
    {%- else %}{{ raise_exception('Invalid content type') }}{% endif %}
    {{ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools or [] %}
                {%- set tool = tool.function %}{{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token}}{%- endif %}
{%- endfor %}
""",
    "deepseek": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif -%}
{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) -%}
{%- for message in messages %}{%- if message['role'] == 'system' %}
    {%- if ns.is_first_sp %}
        {%- set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}
    {%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}
{%- endif %}{%- endfor %}
{{ bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}
    {%- if message['role'] == 'assistant' and message['content'] is not none %}
        {%- if ns.is_tool %}{{'<|tool_end|>' + message['content']}}{%- set ns.is_tool = false -%}
        {%- else %}{% set content = message['content'] %}
            {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
            {{- '<|Assistant|>' + content + '<|end|>'}}{%- endif %}
    {%- endif %}
{%- endfor -%}
{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|><think>\\n'}}{% endif %}
""",
    "macros": """{%- macro render_type(spec) -%}
    {%- if spec.type == "array" -%}{{ render_type(spec["items"]) }}[]
    {%- elif spec.type == "object" -%}
        {{- "{" }}{%- for name, each in spec.properties|dictsort -%}
            {{ name }}{{ "?" if name not in (spec.required or []) }}: {{ render_type(each) }}{{ ", " if not loop.last }}
        {%- endfor -%}{{ "}" }}
    {%- elif spec.enum -%}{{ spec.enum | map("tojson") | join(" | ") }}
    {%- else -%}{{ spec.type or "any" }}{%- endif -%}
{%- endmacro -%}
{%- for tool in tools or [] %}
    {%- set fn = tool.function %}
    {{- "// %s\\ntype %s = (_: " % (fn.description, fn.name) }}{{ render_type(fn.parameters) }}{{ ") => any;\\n" }}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is not string and message.content is sequence %}
        {%- set text = message.content | selectattr("type", "equalto", "text") | map(attribute="text")
            | join("\\n") %}
    {%- else %}{%- set text = message.content | default("", true) | string %}{%- endif %}
    {{- "<|" ~ message.role | upper ~ ":" ~ loop.index ~ "/" ~ loop.length ~ "|>" }}
    {{- text | replace("<|", "< |") | indent(2) }}
    {%- if loop.previtem is defined and loop.previtem.role == message.role %}{{ "again" }}{%- endif %}
    {%- if message.role == "stop" %}{% break %}{% endif %}
    {%- for call in message.tool_calls or [] %}{{ call.function.arguments.items() | list | length }}{% endfor %}
{%- endfor %}
{{ messages | map(attribute="role") | unique | sort | join(",") }} {{ [1, 2, 3][1:] if tools else 7 // 2 * 3 ** 2 }}
{{ range(2, 8, 3) | list }} {{ {"b": 1, "a": none}.get("b", 0) }} {{ "a-b".split("-") | first | title }}
""",
}
"""By model family: the constructs of its template, shortened."""

_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of <b>a</b> place",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string"}, "days": {"type": "array", "items": {"enum": ["mon", "tüe"]}},
            },
            "required": ["place"],
        },
        "return": {"type": "string"},
    },
}  # fmt: skip
_CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich"}}}
_PLAIN: list[dict[str, Any]] = [
    {"role": "user", "content": " Hi <|im_start|>\n there "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello 世界"},
    {"role": "user", "content": "Bye"},
]
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": _PLAIN},
    "system": {"messages": [{"role": "system", "content": "Be kind"}, *_PLAIN], "add_generation_prompt": True},
    "tools": {
        "messages": [
            *_PLAIN[:1], {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": '{"degrees": 3}'}, {"role": "assistant", "content": "cold"}, *_PLAIN[2:],
        ],
        "tools": [_WEATHER], "add_generation_prompt": True,
    },
    "no thinking": {"messages": _PLAIN[:1], "add_generation_prompt": True, "enable_thinking": False},
    "parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in ("a ", "b")]}]
    },
    "wrong order": {"messages": [_PLAIN[0], _PLAIN[0]]},
}  # fmt: skip
