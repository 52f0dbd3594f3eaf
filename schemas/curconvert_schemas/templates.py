"""Renders chat templates of Hugging Face models in Jinja's sandbox, with limits on work and on text.

A template comes with a model, so it may be hostile. Jinja's sandbox keeps it from the system, but not from endless
loops or from filling the memory. Here every loop, call, filter and operator pays out of one budget, for the sizes of
what it takes and gives. What could make much out of little is checked before it runs.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import permutations
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

_BUDGET = 3_000_000  # about a second; a conversation of 1,000 messages takes some 100,000
_MOST_TEXT = 2**22  # characters
_MOST_SOURCE = 2**16  # characters; published templates have at most 20,000
_CHARACTERS = 128  # that cost as much as one number; of four bytes, a quarter as many
_MOST_NUMBER = 10_000  # bits of an integer; a width or a count
_FILTERS = (
    "abs", "attr", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "title",
    "tojson", "trim", "unique", "upper",
)  # fmt: skip
_METHODS = (
    "capitalize", "casefold", "copy", "count", "endswith", "find", "format", "get", "index", "isalnum", "isalpha",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "items", "join", "keys", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit",
    "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "values",
)  # fmt: skip
_SIZED = ("batch", "indent", "round", "slice")  # filters with a number that says how much they make
_ITERATING = ("batch", "groupby", "join", "list", "map", "max", "min", "reject", "select", "slice", "sort", "unique")
_SLOW = ("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip", "trim")  # in time, text · text
# Filters and tests that do not read all of their input.
_CHEAP_FILTERS = ("attr", "count", "d", "default", "first", "items", "last", "length")
_CHEAP_TESTS = (
    "boolean", "callable", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number", "sameas",
    "sequence", "string", "true", "undefined",
)  # fmt: skip
_PLAIN = (str, bytes, int, float, list, tuple, dict, set, frozenset, range, type)
_PAYING = (nodes.For, nodes.Macro, nodes.Block, nodes.CallBlock, nodes.FilterBlock)
# A width of five digits, a width that an argument gives, or a field inside another.
_WIDE = re.compile(r"%(\(.*\))?[-+ #0]*(\d*\.)?(\*|\d{5})|\{[^{}]*(\{|\d{5})", re.DOTALL)


class TemplateLimitError(ValueError):
    """A template does more than any conversation needs."""


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Return a rendered template.

    Raises:
        TemplateLimitError: It takes more work or text than any conversation needs.
        Exception: Whatever else a template can raise.
    """
    _check(len(source) <= _MOST_SOURCE, f"has more than {_MOST_SOURCE} characters")
    environment = _Environment()
    tree = _Payments().visit(environment.parse(source))
    tree.set_environment(environment)
    return environment.from_string(tree).render(dict(variables))


def _check(allowed: bool, what: str = "makes more of a value than any conversation needs") -> None:
    if not allowed:
        raise TemplateLimitError(f"it {what}")


class _Generation(Extension):
    """Accepts `{% generation %}…{% endgeneration %}`, which marks answers for training, and renders its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own protocol

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _through(node: nodes.Expr, name: str) -> nodes.Expr:
    """Return an expression that passes the value of another through a filter."""
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _through(node, "weighed")


class _Payments(NodeTransformer):
    """Adds payments to a parsed template, where Jinja's sandbox has no hook for them."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        """Change the children first, then the node."""
        size = sum(1 for _ in node.find_all(nodes.Node)) if isinstance(node, _PAYING) else 0
        super().generic_visit(node, *args, **kwargs)
        if isinstance(node, _PAYING):
            node.body.insert(0, nodes.Output([_through(nodes.Const(size), "pay")], lineno=node.lineno))
        if isinstance(node, nodes.For) and isinstance(node.test, nodes.Expr):
            node.test = _through(node.test, "weighed")
        elif isinstance(node, nodes.Compare) and [each.op for each in node.ops] in (["in"], ["notin"]):
            found = nodes.Test(node.expr, "in", [node.ops[0].expr], [], None, None, lineno=node.lineno)
            return found if node.ops[0].op == "in" else nodes.Not(found, lineno=node.lineno)
        elif isinstance(node, nodes.Compare):
            node.expr = _weighed(node.expr)
            for operand in node.ops:
                operand.expr = _weighed(operand.expr)
        elif isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Slice):
                return _through(node, "sliced")
            node.arg = _weighed(node.arg)
        elif isinstance(node, nodes.Concat):
            return _through(nodes.List(node.nodes, lineno=node.lineno), "join")
        elif isinstance(node, nodes.List | nodes.Tuple | nodes.Dict) and getattr(node, "ctx", "load") == "load":
            return _through(node, "weighed")
        return node


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with the helpers that templates expect, and a budget for one rendering."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=self._weighed, optimized=False,
        )  # fmt: skip
        self._left = _BUDGET
        self.concat = self._joined  # type: ignore[method-assign] # called for every block, macro and output
        filters: dict[str, Any] = {**self.filters, "tojson": _tojson}
        tests: dict[str, Any] = {**self.tests}
        self.filters = {name: self._metered(name, filters[name], name in _CHEAP_FILTERS) for name in _FILTERS}
        self.filters |= {"pay": self._pay, "weighed": self._weighed, "sliced": self._sliced}
        self.tests = {name: self._metered(name, test, name in _CHEAP_TESTS) for name, test in tests.items()}
        self.globals = {"range": self.globals["range"], "namespace": Namespace, "dict": dict}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply `+`, `*`, `**` or `%`, unless the result is large."""
        costs = self._weight(left), self._weight(right)
        numbers = [value for value in (left, right) if isinstance(value, int)]
        if operator == "%" and isinstance(left, str):
            _check_format(left, costs[1])
        elif operator == "**" and len(numbers) == 2:
            _check(left.bit_length() * right <= _MOST_NUMBER)
        elif operator == "*" and numbers:
            lengths = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
            _check(not lengths or lengths[0] * numbers[0] <= _MOST_TEXT)
        return self._weighed(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, a helper, or a method that does not make much of little."""
        self._spend(10)
        owner = getattr(getattr(called, "__wrapped__", called), "__self__", None)
        if isinstance(owner, _PLAIN):
            name = called.__name__
            _check(name in _METHODS, f"calls the method {name[:40]!r}")
            args = tuple(map(self._read, args))
            cost = sum(map(self._weight, (args, kwargs)))
            self._weight(owner)
            if name == "format":
                _check_format(str(owner), cost)
            self._spend(_check_growth(name, (owner, *args)))
        return self._weighed(super().call(context, called, *args, **kwargs))

    def _metered(self, name: str, function: Callable[..., Any], cheap: bool) -> Callable[..., Any]:
        """Return a filter or test that pays for its input, its output, and each item of an iterator."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._spend(5)
            if cheap:
                return function(*args, **kwargs)
            values = [*map(self._read, args[first:])]
            self._weight(kwargs)
            if name in _ITERATING and hasattr(values[0], "__len__"):
                self._spend(2 * len(values[0]))
            self._spend(_check_growth(name, [*values, *kwargs.values()]))
            found = function(*args[:first], *values, **kwargs)
            return self._items(found) if isinstance(found, Iterator) else self._weighed(found)

        return run

    def _spend(self, amount: int) -> None:
        self._left -= amount
        _check(self._left >= 0, "does more work than any conversation needs")

    def _weight(self, value: Any) -> int:
        """Pay for all that is in a value; return the price."""
        before, todo = self._left, [value]
        while todo:
            each, cost = todo.pop(), 1
            if isinstance(each, str):
                _check(len(each) <= _MOST_TEXT, f"makes a text of more than {_MOST_TEXT} characters")
                cost += len(each) * (1 if each.isascii() else 4) // _CHARACTERS
            elif isinstance(each, int):
                _check(each.bit_length() <= _MOST_NUMBER)
            elif isinstance(each, dict):
                todo += [*each, *each.values()]
            elif isinstance(each, list | tuple | set | frozenset):
                todo += each
            elif isinstance(each, Namespace):
                cost = 5
                todo += object.__getattribute__(each, "_Namespace__attrs").values()
            self._spend(cost)
        return before - self._left

    def _weighed(self, value: Any) -> Any:
        self._weight(value)
        return value

    def _read(self, value: Any) -> Any:
        """Return a paid value, an iterator as a list."""
        return self._weighed(list(self._items(value)) if isinstance(value, Iterator) else value)

    def _items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._spend(1)
            yield item

    @jinja2.pass_context  # so that it is not called once, while the template is compiled
    def _pay(self, _context: Context, amount: int) -> str:
        self._spend(max(0, amount))  # a template can call it, too
        return ""

    def _sliced(self, value: Any) -> Any:
        self._spend(1 + (len(value) // _CHARACTERS if isinstance(value, list | tuple | str) else 0))
        return value

    def _joined(self, parts: Iterable[str]) -> str:
        """Return texts as one, and pay for it."""
        found, length = [], 0
        for text in parts:
            length += len(text)
            _check(length <= _MOST_TEXT, f"makes a text of more than {_MOST_TEXT} characters")
            found.append(text)
        self._spend(1 + length // _CHARACTERS)
        return "".join(found)


def _check_format(text: str, cost: int) -> None:
    fields = text.count("%") + text.count("{")
    _check(len(text) <= 1000 and fields * cost * _CHARACTERS <= _MOST_TEXT and not _WIDE.search(text))


def _check_growth(name: str, values: Any) -> int:
    """Check what a filter or a method of this name would make of its values; return the price of a search."""
    numbers = [value for value in values[1:] if isinstance(value, int)]
    texts = sorted((value for value in values if isinstance(value, str)), key=len, reverse=True)
    _check(name not in _SIZED or max(numbers, default=0) <= _MOST_NUMBER)
    if name == "join":
        lengths = [len(value) for value in values if hasattr(value, "__len__")]
        _check(lengths[0] * max(lengths[1:], default=0) <= _MOST_TEXT if lengths else True)
    elif name == "replace":
        text, *others = map(str, values)
        _check(all(text.count(old) * len(new) <= _MOST_TEXT for old, new in permutations(others, 2)))
    elif name == "indent" and isinstance(values[0], str):
        width = max([*numbers, *(len(value) for value in values[1:] if isinstance(value, str))], default=4)
        _check(len(values[0].splitlines()) * width <= _MOST_TEXT)
    if len(texts) < 2:
        return 0
    return len(texts[0]) * min(len(texts[1]), 100 if name not in _SLOW else _MOST_TEXT) // 1000


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
    _check(indent is None or (isinstance(indent, int) and indent <= 16))
    _check(separators is None or all(len(text) <= 16 for text in separators))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    _check(len(pattern) <= 100 and re.search(r"%[^a-zA-Z]*\d", pattern) is None)
    return datetime.datetime.now().astimezone().strftime(pattern)
