"""JSON as a Go server reads and writes it: error texts, case of keys, escapes, number form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

MESSAGE_FIELDS = {"role": "string", "content": "string"}


class BadJson(Exception):
    """The request body is not what the handler's struct takes; the text is Go's."""


def encode(value: Any) -> bytes:
    """Return compact JSON with Go's HTML escapes and with whole floats written as integers."""
    text = json.dumps(_go_numbers(value), ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()


def _go_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, Mapping):
        return {key: _go_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_go_numbers(item) for item in value]
    return value


def timestamp(nanoseconds: int) -> str:
    """Return RFC 3339 in UTC with up to nine decimals, trailing zeros cut, as Go's time.Time marshals."""
    seconds, rest = divmod(nanoseconds, 10**9)
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


def decode(body: bytes, struct: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """Read one JSON object into `fields` (name → Go type); unknown keys and nulls are dropped.

    Raises:
        BadJson: with the text of gin's ShouldBindJSON; trailing bytes after the first value are ignored,
            as Go's decoder does.
    """
    text = body.decode("utf-8", "replace").lstrip()
    if not text:
        raise BadJson("missing request body")
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text)
    except json.JSONDecodeError as exc:
        raise BadJson(_syntax_error(text, exc)) from exc
    if not isinstance(value, dict):
        raise BadJson(f"json: cannot unmarshal {_kind(value)} into Go value of type api.{struct}")
    by_folded_name = {name.lower(): name for name in fields}
    result: dict[str, Any] = {}
    for key, item in value.items():
        name = by_folded_name.get(key.lower())
        if name is None or item is None:
            continue
        _check(item, fields[name], f"{struct}.{name}")
        result[name] = item
    return result


def _syntax_error(text: str, exc: json.JSONDecodeError) -> str:
    if exc.pos >= len(text) or exc.msg.startswith("Unterminated"):
        return "unexpected EOF"
    char = text[exc.pos]
    if "property name" in exc.msg:
        return f"invalid character {char!r} looking for beginning of object key string"
    if "':'" in exc.msg:
        return f"invalid character {char!r} after object key"
    if "','" in exc.msg:
        opened = "object key:value pair" if _inside_object(text[: exc.pos]) else "array element"
        return f"invalid character {char!r} after {opened}"
    return f"invalid character {char!r} looking for beginning of value"


def _inside_object(text: str) -> bool:
    bare = re.sub(r'"(?:\\.|[^"\\])*"', "", text)
    stack: list[str] = []
    for char in bare:
        if char in "{[":
            stack.append(char)
        elif char in "}]" and stack:
            stack.pop()
    return bool(stack) and stack[-1] == "{"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _check(value: Any, go_type: str, field: str) -> None:
    """Raise BadJson when `value` is not of `go_type`; types that are not listed take anything."""
    expected: dict[str, type] = {
        "string": str,
        "bool": bool,
        "int": int,
        "map[string]string": dict,
        "map[string]interface {}": dict,
        "[]api.Message": list,
    }
    if go_type not in expected:
        return
    if not isinstance(value, expected[go_type]) or (go_type == "int" and isinstance(value, bool)):
        raise BadJson(f"json: cannot unmarshal {_kind(value)} into Go struct field {field} of type {go_type}")
    if go_type == "map[string]string" and isinstance(value, dict):
        for item in value.values():
            if item is not None:
                _check(item, "string", field)
    if go_type == "[]api.Message" and isinstance(value, list):
        for message in value:
            if not isinstance(message, dict):
                kind = _kind(message)
                raise BadJson(
                    f"json: cannot unmarshal {kind} into Go struct field {field} of type api.Message"
                )
            for name, part_type in MESSAGE_FIELDS.items():
                if message.get(name) is not None:
                    _check(message[name], part_type, f"{field}.{name}")


def format_option(value: Any, *, quote: bool) -> str:
    """Return an option as Go's %v prints it, or as %#v (strings in double quotes) when `quote`."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if quote else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        # Shortest digits; strconv's 'g' takes the exponent form below 1e-4 and from 1e+06 on.
        number = float(value)
        if number and not 1e-4 <= abs(number) < 1e6:
            mantissa, _, exponent = np.format_float_scientific(number, trim="-").partition("e")
            return f"{mantissa}e{int(exponent):+03d}"
        return repr(number).removesuffix(".0")
    return json.dumps(value)
