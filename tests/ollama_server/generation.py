"""Chat and generate: which prompt is made of a request, how it is cut, and what the answer lines hold.

Follows `server/routes.go`, `server/prompt.go` and `llm/llama_server.go` of Ollama 0.33.0-rc2.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tests.ollama_server.create import NotCoveredByDouble
from tests.ollama_server.go_json import BadJson, decode, timestamp
from tests.ollama_server.go_template import GoTemplate
from tests.ollama_server.model_store import StoredModel
from tests.ollama_server.scheduler import Gone, Runner

if TYPE_CHECKING:
    from tests.ollama_server.server import OllamaServer

_COMMON_FIELDS = {
    "model": "string",
    "stream": "bool",
    "options": "map[string]interface {}",
    "truncate": "bool",
    "shift": "bool",
    "_debug_render_only": "bool",
    "keep_alive": "duration",
    "format": "any",
    "think": "any",
    "logprobs": "bool",
}
CHAT_FIELDS = {**_COMMON_FIELDS, "messages": "[]api.Message", "tools": "any"}
GENERATE_FIELDS = {
    **_COMMON_FIELDS,
    "prompt": "string",
    "system": "string",
    "template": "string",
    "suffix": "string",
    "raw": "bool",
    "images": "any",
    "context": "any",
}
NOT_COVERED = ("tools", "logprobs", "images", "suffix", "context")

# api.DefaultOptions; the second value is the Go type that a wrong value is reported with.
_OPTIONS: dict[str, tuple[Any, str]] = {
    "num_predict": (-1, "integer"),
    "num_keep": (4, "integer"),
    "temperature": (0.8, "float32"),
    "top_k": (40, "integer"),
    "top_p": (0.9, "float32"),
    "min_p": (0.0, "float32"),
    "typical_p": (1.0, "float32"),
    "repeat_last_n": (64, "integer"),
    "repeat_penalty": (1.0, "float32"),
    "presence_penalty": (0.0, "float32"),
    "frequency_penalty": (0.0, "float32"),
    "seed": (-1, "integer"),
    "stop": ([], "array"),
    "num_ctx": (None, "integer"),
    "num_batch": (None, "integer"),
    "num_gpu": (None, "integer"),
    "main_gpu": (None, "integer"),
    "use_mmap": (None, "boolean"),
    "num_thread": (None, "integer"),
}
OPEN_ENDED_CONTEXTS = 10
"""An unbounded num_predict ends after this many contexts."""
TOKEN_REPEAT_LIMIT = 30
_DURATION = re.compile(r"([-+]?)((?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class GenerationError(Exception):
    """Ends a request before or inside its stream."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class BadOption(Exception):
    """An option has the wrong type; the text is Ollama's."""


def chat(
    ollama: OllamaServer, model: StoredModel, request: dict[str, Any], is_gone: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Yield the answers of /api/chat; one that carries `_single` is the whole answer, never a stream."""
    messages = request.get("messages") or []

    def answer(text: str, **rest: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"model": request["model"], "created_at": _now(), "message": message, **rest}

    if not messages and _keep_alive_s(request) == 0:
        ollama.scheduler.expire(model)
        yield answer("", done=True, done_reason="unload", _single=True)
        return
    _refuse_uncovered(request, model)

    def prompt(runner: Runner) -> str | None:
        if not messages:
            return None
        texts = [*model.messages, *messages]
        if messages[0].get("role") != "system" and model.system:
            texts.insert(0, {"role": "system", "content": model.system})
        return _chat_prompt(model, runner, texts, truncate=request.get("truncate", True))

    for event in _generation(ollama, model, request, prompt, is_gone):
        if "rendered_template" in event:
            message = {"role": "", "content": ""}
            yield {**answer(""), "message": message, "done": False, "_debug_info": event, "_single": True}
        elif event.get("done_reason") == "load":
            yield answer("", done=True, done_reason="load", _single=True)
        else:
            yield answer(event.pop("text"), **event)


def generate(
    ollama: OllamaServer, model: StoredModel, request: dict[str, Any], is_gone: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Yield the answers of /api/generate, as `chat` does for /api/chat."""

    def answer(text: str, **rest: Any) -> dict[str, Any]:
        return {"model": request["model"], "created_at": _now(), "response": text, **rest}

    text: str = request.get("prompt", "")
    if not text and _keep_alive_s(request) == 0:
        ollama.scheduler.expire(model)
        yield answer("", done=True, done_reason="unload", _single=True)
        return
    _refuse_uncovered(request, model)
    raw = request.get("raw", False)
    if raw and (request.get("template") or request.get("system")):
        raise GenerationError("raw mode does not support template, system, or context", 400)

    def prompt(runner: Runner) -> str | None:
        if not text:
            return None
        if raw:
            return text
        system = request.get("system") or model.system
        messages = [{"role": "system", "content": system}] if system else []
        messages += [*model.messages, {"role": "user", "content": text}]
        if request.get("template"):
            return GoTemplate(request["template"]).render(messages)
        return _chat_prompt(model, runner, messages, truncate=request.get("truncate", True))

    for event in _generation(ollama, model, request, prompt, is_gone, with_context=not raw):
        if "rendered_template" in event:
            yield {**answer(""), "done": False, "_debug_info": event, "_single": True}
        elif event.get("done_reason") == "load":
            yield answer("", done=True, done_reason="load", _single=True)
        else:
            yield answer(event.pop("text"), **event)


def _generation(
    ollama: OllamaServer,
    model: StoredModel,
    request: dict[str, Any],
    make_prompt: Callable[[Runner], str | None],
    is_gone: Callable[[], bool],
    *,
    with_context: bool = False,
) -> Iterator[dict[str, Any]]:
    """Load what is needed, then yield text events and one with the counts, when the runner is free again."""
    options = _options(model, request)
    truncate, shift = request.get("truncate", True), request.get("shift", True)
    started = time.monotonic_ns()
    with ollama.scheduler.runner(
        model,
        options,
        keep_alive_s=_keep_alive_s(request),
        context_shift=shift,
        is_gone=is_gone,
    ) as runner:
        loaded = time.monotonic_ns()
        prompt = make_prompt(runner)
        if prompt is None:
            last: dict[str, Any] | None = {"done_reason": "load"}
        elif request.get("_debug_render_only"):
            last = {"rendered_template": prompt}
        else:
            last, spoken = None, ""
            with runner.turn:
                body = _completion_request(runner, prompt, options, request, truncate=truncate, shift=shift)
                for text, final in _events(runner, body):
                    if is_gone():
                        raise Gone
                    spoken += text
                    if final is None:
                        yield {"text": text, "done": False}
                    else:
                        last = {"text": text, "done": True, "done_reason": final.pop("done_reason")}
            if last is not None:
                if with_context:
                    last["context"] = runner.tokenize(prompt + spoken)
                last["total_duration"] = time.monotonic_ns() - started
                last["load_duration"] = loaded - started
                last |= final or {}
    # After the runner is released, so that /api/ps already tells the truth to a client that reads this.
    if last is not None:
        yield last


def _events(runner: Runner, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield (text, None) per token and (text, counts) at the end; a repeating model ends without counts."""
    last_token, repeats = "", 0
    for event in runner.complete(body):
        token = event["content"].strip()
        last_token, repeats = token, repeats + 1 if token == last_token else 0
        if repeats > TOKEN_REPEAT_LIMIT:
            return
        if event["stop"]:
            timings = event["timings"]
            yield (
                event["content"],
                {
                    "done_reason": "length" if event.get("stop_type") == "limit" else "stop",
                    "prompt_eval_count": timings.get("cache_n", 0) + timings["prompt_n"],
                    "prompt_eval_duration": int(timings["prompt_ms"] * 1e6),
                    "eval_count": timings["predicted_n"],
                    "eval_duration": max(int(timings["predicted_ms"] * 1e6), 1),
                },
            )
        elif event["content"]:
            yield event["content"], None


def _chat_prompt(
    model: StoredModel, runner: Runner, messages: list[dict[str, str]], *, truncate: bool
) -> str:
    """Render `messages`; with `truncate`, drop the oldest (never system texts or the last) until they fit."""
    messages = [{"role": item.get("role", ""), "content": item.get("content", "")} for item in messages]

    def render(part: list[dict[str, str]]) -> str:
        return model.template.render(part) if model.template else runner.apply_own_template(part)

    if not truncate:
        return render(messages)
    for first in range(len(messages)):
        system = [item for item in messages[:first] if item["role"] == "system"]
        prompt = render(system + messages[first:])
        if len(runner.tokenize(prompt)) <= runner.num_ctx:
            break
    return prompt


def _completion_request(
    runner: Runner,
    prompt: str,
    options: dict[str, Any],
    request: dict[str, Any],
    *,
    truncate: bool,
    shift: bool,
) -> dict[str, Any]:
    limit = OPEN_ENDED_CONTEXTS * runner.num_ctx
    wanted = options["num_predict"]
    body = {
        "prompt": _cut(runner, prompt, options["num_keep"], shift=shift) if truncate else prompt,
        "stream": True,
        "cache_prompt": True,
        "n_predict": limit if wanted < 0 or wanted > limit else wanted,
        "n_keep": options["num_keep"],
        **{key: options[key] for key in ("temperature", "top_k", "top_p", "min_p", "typical_p")},
        **{key: options[key] for key in ("repeat_penalty", "repeat_last_n", "seed", "stop")},
        **{key: options[key] for key in ("presence_penalty", "frequency_penalty")},
    }
    schema = request.get("format")
    if isinstance(schema, dict):
        body["json_schema"] = schema
    elif schema:
        raise NotCoveredByDouble("format other than a JSON schema")
    return body


def _cut(runner: Runner, prompt: str, num_keep: int, *, shift: bool) -> str | list[int]:
    """Return the prompt, or the tokens of one that is silently cut to the first `num_keep` and the end."""
    if len(prompt.encode()) < runner.num_ctx:
        return prompt
    tokens = runner.tokenize(prompt)
    if len(tokens) <= runner.num_ctx - 1:
        return prompt
    if not shift:
        raise GenerationError(
            "the prompt is longer than the context length currently available to the model; shorten the "
            "prompt, adjust the context length in settings, or use a model with a longer context length",
            400,
        )
    add_bos = bool(runner.model.header.kv.get("tokenizer.ggml.add_bos_token"))
    keep = min((len(tokens) if num_keep < 0 else num_keep) + add_bos, runner.num_ctx - 1)
    # Half of what is not kept is left free for the answer: 512 - (512 - 4) / 2 = 258 tokens.
    kept = runner.num_ctx - max((runner.num_ctx - keep) // 2, 1)
    return tokens[:keep] + tokens[keep + len(tokens) - kept :]


def _options(model: StoredModel, request: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then the model's parameters, then the request's; unknown names are ignored."""
    options = {name: default for name, (default, _) in _OPTIONS.items()}
    given: dict[str, Any] = {}
    for name, value in [*model.options.items(), *(request.get("options") or {}).items()]:
        if name not in _OPTIONS or value is None:
            continue
        kind = _OPTIONS[name][1]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {
            "integer": number,
            "float32": number,
            "boolean": isinstance(value, bool),
            "array": isinstance(value, list),
        }[kind]
        if not fits:
            raise BadOption(f'option "{name}" must be of type {kind}')
        if kind == "array" and not all(isinstance(item, str) for item in value):
            raise BadOption(f'option "{name}" must be of an array of strings')
        given[name] = int(value) if kind == "integer" else value
    options |= given
    return options if "num_ctx" in given else {k: v for k, v in options.items() if k != "num_ctx"}


def _keep_alive_s(request: dict[str, Any]) -> float | None:
    """Seconds a runner stays after the request, None for the default; negative means for ever."""
    value = request.get("keep_alive")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise GenerationError(f"Unsupported type: '{type(value).__name__}'", 400)
    if isinstance(value, str):
        if value.lstrip("+-") == "0":
            return 0.0
        if not _DURATION.fullmatch(value):
            raise GenerationError(f'time: {_duration_fault(value)} "{value}"', 400)
        parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", value)
        seconds = sum(float(amount) * _UNITS_S[unit] for amount, unit in parts)
        return float("inf") if value.startswith("-") and seconds else seconds
    return float("inf") if value < 0 else float(value)


def _duration_fault(value: str) -> str:
    return "missing unit in duration" if re.fullmatch(r"[-+]?\d+(\.\d*)?", value) else "invalid duration"


def _refuse_uncovered(request: dict[str, Any], model: StoredModel) -> None:
    if "completion" not in model.capabilities:
        raise GenerationError(f'"{request["model"]}" does not support chat', 400)
    if request.get("think"):
        raise GenerationError(f'"{request["model"]}" does not support thinking', 400)
    for key in NOT_COVERED:
        if request.get(key):
            raise NotCoveredByDouble(f"the field {key!r}")


def _now() -> str:
    return timestamp(time.time_ns())


# ---- OpenAI's form


def from_openai(body: bytes) -> tuple[dict[str, Any], bool]:
    """Return the chat request that /v1/chat/completions makes of `body`, and whether to stream the usage.

    It carries no num_ctx, no keep_alive and no truncate, so the defaults apply. Raises BadJson.
    """
    fields = {
        "model": "string",
        "messages": "[]openai.Message",
        "stream": "bool",
        "stream_options": "any",
        "max_tokens": "int",
        "seed": "int",
        "stop": "any",
        "temperature": "any",
        "top_p": "any",
        "frequency_penalty": "any",
        "presence_penalty": "any",
        "tools": "any",
        "_debug_render_only": "bool",
    }
    try:
        given = decode(body, "ChatCompletionRequest", fields)
    except BadJson as exc:
        raise BadJson("EOF" if str(exc) == "missing request body" else str(exc)) from exc
    if not given.get("messages"):
        raise BadJson("[] is too short - 'messages'")
    messages = []
    for message in given["messages"]:
        content = message.get("content")
        if isinstance(content, str):
            messages.append({"role": message.get("role", ""), "content": content})
        elif isinstance(content, list):
            for part in content:
                if not isinstance(part, dict) or part.get("type") != "text":
                    raise BadJson("invalid message format")
                messages.append({"role": message.get("role", ""), "content": part["text"]})
        else:
            raise BadJson("invalid message content type: <nil>")
    options: dict[str, Any] = {
        "temperature": given.get("temperature", 1.0),
        "top_p": given.get("top_p", 1.0),
    }
    if "max_tokens" in given:
        options["num_predict"] = given["max_tokens"]
    options |= {key: given[key] for key in ("seed", "frequency_penalty", "presence_penalty") if key in given}
    if "stop" in given:
        options["stop"] = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
    request = {
        "model": given.get("model", ""),
        "messages": messages,
        "options": options,
        "stream": given.get("stream", False),
        "tools": given.get("tools"),
        "_debug_render_only": given.get("_debug_render_only", False),
    }
    return request, bool((given.get("stream_options") or {}).get("include_usage"))


def to_openai(identity: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the chat.completion object of one whole chat answer."""
    choice = {
        "index": 0,
        "message": answer["message"],
        "finish_reason": answer.get("done_reason"),
    }
    result = {
        **_openai_head(identity, "chat.completion", answer),
        "choices": [choice],
        "usage": _usage(answer),
    }
    return {**result, "_debug_info": answer["_debug_info"]} if "_debug_info" in answer else result


def to_openai_chunks(
    identity: str, answers: Iterator[dict[str, Any]], *, include_usage: bool
) -> Iterator[dict[str, Any] | bytes]:
    """Yield chat.completion.chunk objects and `[DONE]`; the finish reason has a chunk of its own."""
    opened = False
    for answer in answers:
        head = _openai_head(identity, "chat.completion.chunk", answer)
        text = answer["message"]["content"]
        if not (answer["done"] and opened and not text):
            delta = {"content": text} if opened else {"role": "assistant", "content": text}
            yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            opened = True
        if answer["done"]:
            reason = answer.get("done_reason") or "stop"
            yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
            if include_usage:
                yield {**head, "choices": [], "usage": _usage(answer)}
            yield b"[DONE]"


def _openai_head(identity: str, kind: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": identity,
        "object": kind,
        "created": int(time.time()),
        "model": answer["model"],
        "system_fingerprint": "fp_ollama",
    }


def _usage(answer: dict[str, Any]) -> dict[str, int]:
    prompt, spoken = answer.get("prompt_eval_count", 0), answer.get("eval_count", 0)
    return {"prompt_tokens": prompt, "completion_tokens": spoken, "total_tokens": prompt + spoken}
