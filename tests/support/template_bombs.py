"""Chat templates that run for ever, fill the memory, or look for a way out of the sandbox."""

from __future__ import annotations

_DOUBLE = (
    "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = NEXT %}{% endfor %}{{ ns.x | length }}"
)


def _doubled(start: str, following: str) -> str:
    return _DOUBLE.replace("START", start).replace("NEXT", following)


_LISTS = "{% set a0 = [1] %}" + "".join(f"{{% set a{n + 1} = [a{n}, a{n}] %}}" for n in range(40))
_COPIES = _LISTS + _LISTS.replace("a", "b").replace("rbnge", "range")
BOMBS = {
    "power": "{{ 10**(10**8) }}",
    "power of powers": "{{ 9**9**9**9**9 }}",
    "power in a test": "{% if 10**(10**9) > 1 %}x{% endif %}",
    "power by steps": _doubled("3", "ns.x * ns.x"),
    "repeated text": "{{ 'x' * 10**9 }}",
    "repeated text, reversed": "{{ 10**10 * 'x' }}",
    "repeated list": "{{ ([0] * 10**9) | length }}",
    "doubled text": _doubled("'xx'", "ns.x + ns.x"),
    "doubled text by ~": _doubled("'xx'", "ns.x ~ ns.x"),
    "doubled text by join": _doubled("'xx'", "[ns.x, ns.x] | join"),
    "doubled text by replace": _doubled("'xx'", "ns.x | replace('x', 'xx')"),
    "doubled text by a method": _doubled("'xx'", "ns.x.replace('x', 'xx')"),
    "doubled text by format": _doubled("'xx'", "'%s%s' % (ns.x, ns.x)"),
    "doubled text by str.format": _doubled("'xx'", "'{0}{0}'.format(ns.x)"),
    "doubled list": _doubled("[1]", "ns.x + ns.x"),
    "doubled block": "{% set ns = namespace(x='xx') %}{% for i in range(60) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubled macro": "{% macro d(x, n) %}{% if n %}{{ d(x ~ x, n - 1) }}{% else %}{{ x }}{% endif %}{% endmacro %}"
    "{{ d('x', 60) }}",
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "nested ranges, filtered": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
    "nested ranges, written": "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "long body": "{% for a in range(99999) %}" + "{% if a %}{% set b = a %}{% endif %}" * 1500 + "{% endfor %}",
    "large range": "{{ range(10**12) | list }}",
    "list of a range in a loop": "{% for a in range(99999) %}{% set b = range(99999) | list %}{% endfor %}",
    "first of a range in a loop": "{% for a in range(99999) %}{{ range(99999) | select('none') | first }}{% endfor %}",
    "sorted range in a loop": "{% for a in range(99999) %}{% set b = range(99999) | sort %}{% endfor %}",
    "search in a loop": "{% set x = 'a' * 4000000 %}{% for a in range(99999) %}{% if 'ab' in x %}{% endif %}"
    "{% endfor %}",
    "search method in a loop": "{% set x = 'a' * 4000000 %}{% for a in range(99999) %}{% set b = x.find('b') %}"
    "{% endfor %}",
    "slices in a loop": "{% set x = range(99999) | list %}{% for a in x %}{% set b = x[1:] %}{% endfor %}",
    "shared lists, printed": _LISTS + "{{ a40 }}",
    "shared lists, as text": _LISTS + "{{ a40 | string | length }}",
    "shared lists, as JSON": _LISTS + "{{ a40 | tojson }}",
    "shared lists, compared": _COPIES + "{{ a40 == b40 }}",
    "shared tuples, as a key": _LISTS.replace("[", "(").replace("]", ",)") + "{{ {a40: 1} }}",
    "namespaces in lists": "{% set a0 = [1] %}"
    + "".join(f"{{% set a{n + 1} = [namespace(x=a{n}), namespace(x=a{n})] %}}" for n in range(40))
    + "{{ a40 }}",
    "namespace of itself": "{% set n = namespace() %}{% set n.x = [n] %}{{ [n] }}",
    "macro for ever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro in two branches": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "recursive loop of some depth": "{% for x in [1, 2] recursive %}"
    "{% if loop.depth < 40 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "caller twice": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 15
    + "x" * 200
    + "{% endcall %}" * 15,
    "block of itself": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "wide format": "{{ '%999999999d' % 1 }}",
    "wide format by argument": "{{ '%*d' % (999999999, 1) }}",
    "wide format of a key": "{{ '%((a))999999999d' % {'(a)': 1} }}",
    "precise format": "{{ '%.999999999f' % 1.5 }}",
    "wide str.format": "{{ '{:999999999}'.format(1) }}",
    "wide str.format by argument": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "format_map": "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "JSON indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "JSON indent of text": "{{ range(99999) | list | tojson(indent='x' * 99999) }}",
    "JSON separators": "{{ range(99999) | list | tojson(separators=('x' * 99999, 'y')) }}",
    "indent": "{{ ('\\n' * 99999) | indent(99999) }}",
    "indent by other line ends": "{{ ('\\r' * 99999) | indent(9999) }}",
    "join": "{{ range(99999) | join('x' * 99999) }}",
    "join of text": "{{ ('x' * 99999) | join('y' * 99999) }}",
    "join method": "{{ ('x' * 99999).join(('y' * 99999)) }}",
    "replace": "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
    "replace of a list": "{{ ([1] * 99999) | replace('1', 'y' * 99999) }}",
    "replace by names in another order": "{{ ('x' * 99999) | replace(new='y' * 99999, old='x') }}",
    "replace of nothing": "{{ ('x' * 99999) | replace('', 'y' * 99999) }}",
    "join by name": "{{ ('x' * 99999) | join(attribute=none, d='y' * 99999) }}",
    "more budget": "{% for a in range(99999) %}{{ (-1000000) | pay }}{{ [-1000000] | map('pay') | join }}"
    "{% set x = range(9999) | list %}{% endfor %}",
    "strip": "{% set x = 'a' * 4000000 %}{{ x.strip('b' * 3000000 ~ 'a') }}",
    "trim": "{% set x = 'a' * 4000000 %}{{ x | trim('b' * 3000000 ~ 'a') }}",
    "search from the end": "{% set x = 'a' * 4000000 %}{{ x.rfind('b' ~ 'a' * 2000000) }}",
    "split from the end": "{% set x = 'a' * 4000000 %}{{ x.rsplit('b' ~ 'a' * 2000000) }}",
    "slow search in a loop": "{% set x = 'a' * 29000 %}{% set y = 'a' * 49 ~ 'b' ~ 'a' * 49 %}"
    "{% for a in range(99999) %}{% set b = x.find(y) %}{% endfor %}",
    "slow search by in": "{% set x = 'a' * 29000 %}{% set y = 'a' * 49 ~ 'b' ~ 'a' * 49 %}"
    "{% for a in range(99999) %}{% if y in x or y not in x %}{% endif %}{% endfor %}",
    "center": "{{ 'x' | center(10**9) }}",
    "center method": "{{ 'x'.center(10**9) }}",
    "ljust method": "{{ 'x'.ljust(10**9) }}",
    "zfill method": "{{ 'x'.zfill(10**9) }}",
    "expandtabs method": "{{ ('\\t' * 9999).expandtabs(10**9) }}",
    "to_bytes method": "{{ (1).to_bytes(10**9) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 1 | round(10**9, 'floor') }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "joiner": "{% set j = joiner('x') %}{% for a in range(99999) %}{{ j() }}{% endfor %}",
    "cycler": "{{ cycler(*range(10**9)) }}",
    "long integer": "{{ " + "9" * 4200 + " ** 99 }}",
    "integer from text": "{{ ('1' * 4000000) | int(base=2) % 3 }}",
    "strftime": "{{ strftime_now('%999999999d') }}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attributes by filter": "{{ '' | attr('__class__') | attr('mro') }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "globals of a macro": "{{ namespace.__init__.__globals__['os'].system('id') }}",
    "format's attributes": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "deep parentheses": "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}",
    "deep list": "{{ " + "[" * 30_000 + "]" * 30_000 + " }}",
    "deep blocks": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "deep loops": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "long sum": "{{ 1" + "+1" * 30_000 + " }}",
    "long source": "x" * 10**6,
    "unclosed": "{{ (1, ",
    "unknown filter": "{{ 1 | pprint }}",
}
"""Templates that must end at once, with an error."""
