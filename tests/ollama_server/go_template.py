"""The part of Go's text/template that chat templates of small models use.

Knows text, trim markers, `range`, `if`/`else if`/`else`, `end`, fields, `$`, comments, string literals and
the functions eq, ne, and, or, not, len. A construct outside of that raises `NotCovered`: a double that
guessed a prompt would be worse than one that says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

CHATML = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
CHATML_STOPS = ("<|im_start|>", "<|im_end|>")

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|`[^`]*`|\(|\)|\$?(?:\.[A-Za-z_]\w*)+|\$|\.|[A-Za-z_]\w*|-?\d+|\|')
_FUNCTIONS = {"eq", "ne", "and", "or", "not", "len"}


class BadTemplate(Exception):
    """The template does not parse; the text is Go's."""


class NotCovered(Exception):
    """The template is (perhaps) valid Go, but this double cannot render it."""


@dataclass
class _Node:
    kind: str
    """`text`, `action`, `if` or `range`."""
    text: str = ""
    body: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)


@dataclass
class GoTemplate:
    """One parsed template; `source` is what /api/show returns."""

    source: str

    def __post_init__(self) -> None:
        self._nodes = _parse(self.source)

    @property
    def fields(self) -> set[str]:
        """Lower-case names of all fields that the template reads."""
        actions = re.findall(r"\{\{(.*?)\}\}", self.source, re.DOTALL)
        return {name.lower() for action in actions for name in re.findall(r"\.([A-Za-z_]\w*)", action)}

    def render(self, messages: list[dict[str, str]]) -> str:
        """Return the prompt for `messages` (role, content).

        As in `template.Execute`: neighbours of one role are joined by an empty line, all system texts are
        also in `.System`, and nothing is inserted that the template does not write.
        """
        if "messages" not in self.fields:
            raise NotCovered("templates without .Messages")
        system = [message["content"] for message in messages if message["role"] == "system"]
        collated: list[dict[str, str]] = []
        for message in messages:
            if collated and collated[-1]["Role"] == message["role"] != "tool":
                collated[-1]["Content"] += "\n\n" + message["content"]
            else:
                collated.append({"Role": message["role"], "Content": message["content"]})
        root = {"System": "\n\n".join(system), "Messages": collated, "Tools": None, "Response": ""}
        return "".join(_run(self._nodes, root, root))


def _parse(source: str) -> list[_Node]:
    pieces = _lex(source)
    nodes, rest = _block(pieces, 0, top=True)
    assert rest == len(pieces)
    return nodes


def _lex(source: str) -> list[tuple[str, str, int]]:
    """Return (kind, text, line) pieces with the trim markers applied to their neighbours."""
    pieces: list[tuple[str, str, int]] = []
    position, trim_next = 0, False
    while True:
        start = source.find("{{", position)
        text = source[position:] if start < 0 else source[position:start]
        if trim_next:
            text = text.lstrip(" \t\r\n")
        if start < 0:
            if text:
                pieces.append(("text", text, 0))
            return pieces
        line = source.count("\n", 0, start) + 1
        end = source.find("}}", start)
        if end < 0:
            raise BadTemplate(f"template: :{source.count(chr(10)) + 1}: unclosed action")
        action = source[start + 2 : end]
        if action.startswith("- ") or action == "-" or action.startswith("-\n"):
            text = text.rstrip(" \t\r\n")
            action = action[1:]
        trim_next = action.endswith((" -", "\n-"))
        if trim_next:
            action = action[:-1]
        if text:
            pieces.append(("text", text, line))
        action = action.strip()
        if not action:
            raise BadTemplate(f"template: :{line}: missing value for command")
        if not action.startswith("/*"):
            pieces.append(("action", action, line))
        position = end + 2


def _block(pieces: list[tuple[str, str, int]], at: int, *, top: bool = False) -> tuple[list[_Node], int]:
    """Read nodes until `end` or `else` (left for the caller) or, at the top, until the last piece."""
    nodes: list[_Node] = []
    while at < len(pieces):
        kind, text, line = pieces[at]
        word = text.split(None, 1)[0] if kind == "action" else ""
        if word in ("end", "else"):
            if top:
                raise BadTemplate(f"template: :{line}: unexpected {{{{{text}}}}}")
            return nodes, at
        at += 1
        if kind == "text":
            nodes.append(_Node("text", text))
        elif word in ("if", "range"):
            node, at = _branch(word, text[len(word) :].strip(), pieces, at)
            nodes.append(node)
        elif word in ("with", "define", "template", "block", "break", "continue"):
            raise NotCovered(f"{{{{ {word} }}}}")
        else:
            _check(text)
            nodes.append(_Node("action", text))
    if not top:
        last = pieces[-1][2] if pieces else 1
        raise BadTemplate(f"template: :{last or 1}: unexpected EOF")
    return nodes, at


def _branch(kind: str, condition: str, pieces: list[tuple[str, str, int]], at: int) -> tuple[_Node, int]:
    _check(condition)
    node = _Node(kind, condition)
    node.body, at = _block(pieces, at)
    text = pieces[at][1]
    at += 1
    if text.startswith("else"):
        rest = text[4:].strip()
        if rest.startswith("if"):
            inner, at = _branch("if", rest[2:].strip(), pieces, at)
            node.otherwise = [inner]
            return node, at
        node.otherwise, at = _block(pieces, at)
        at += 1
    return node, at


def _check(expression: str) -> None:
    tokens = _TOKEN.findall(expression)
    if "".join(tokens) != re.sub(r"\s+(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", "", expression):
        raise NotCovered(f"the expression {expression!r}")
    for token in tokens:
        if token == "|" or (re.fullmatch(r"[A-Za-z_]\w*", token) and token not in _FUNCTIONS):
            raise NotCovered(f"the expression {expression!r}")


def _run(nodes: list[_Node], dot: Any, root: Any) -> list[str]:
    out: list[str] = []
    for node in nodes:
        if node.kind == "text":
            out.append(node.text)
        elif node.kind == "action":
            value = _evaluate(node.text, dot, root)
            out.append("" if value is None else str(value))
        elif node.kind == "if":
            chosen = node.body if _evaluate(node.text, dot, root) else node.otherwise
            out += _run(chosen, dot, root)
        else:
            items = _evaluate(node.text, dot, root) or []
            for item in items:
                out += _run(node.body, item, root)
            if not items:
                out += _run(node.otherwise, dot, root)
    return out


def _evaluate(expression: str, dot: Any, root: Any) -> Any:
    tokens = _TOKEN.findall(expression)
    value, at = _pipeline(tokens, 0, dot, root)
    if at != len(tokens):
        raise NotCovered(f"the expression {expression!r}")
    return value


def _pipeline(tokens: list[str], at: int, dot: Any, root: Any) -> tuple[Any, int]:
    name = tokens[at] if tokens[at] in _FUNCTIONS else ""
    at += bool(name)
    values = []
    while at < len(tokens) and tokens[at] != ")":
        if tokens[at] == "(":
            value, at = _pipeline(tokens, at + 1, dot, root)
            at += 1
        else:
            value = _operand(tokens[at], dot, root)
            at += 1
        values.append(value)
    if not name and len(values) == 1:
        return values[0], at
    if name in ("and", "or"):
        result = values[0]
        for value in values[1:]:
            result = (result and value) if name == "and" else (result or value)
        return result, at
    if name == "not":
        return not values[0], at
    if name == "len":
        return len(values[0]), at
    if name == "eq":
        return any(values[0] == value for value in values[1:]), at
    if name == "ne":
        return values[0] != values[1], at
    raise NotCovered("a call of several values")


def _operand(token: str, dot: Any, root: Any) -> Any:
    if token.startswith('"'):
        return token[1:-1].encode().decode("unicode_escape")
    if token.startswith("`"):
        return token[1:-1]
    if re.fullmatch(r"-?\d+", token):
        return int(token)
    value = root if token.startswith("$") else dot
    for name in token.lstrip("$").split("."):
        if name:
            value = value.get(name) if isinstance(value, dict) else None
    return value


@lru_cache(maxsize=16)
def detect_template(jinja: str) -> str | None:
    """Return the built-in Go template for a GGUF's own jinja template, or None when Ollama has none.

    Ollama takes the nearest of its list by edit distance when that is below 100 (`template.Named`); of that
    list this double knows ChatML only, in the plain form and in the form with a default system prompt.
    """
    plain = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% endif %}"
    )
    with_default = plain.replace(
        "%}{{'<|im_start|>' +",
        "%}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful "
        "assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' +",
        1,
    )
    return CHATML if min(_distance(jinja, plain), _distance(jinja, with_default)) < 100 else None


def _distance(left: str, right: str) -> int:
    """Levenshtein distance, cut off at 100 by the length difference."""
    if abs(len(left) - len(right)) >= 100:
        return 100
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]
