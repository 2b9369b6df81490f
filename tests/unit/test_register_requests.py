"""A registration asks a busy Prefect server again; a server that stays away is said to."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import httpx
import pytest

from training.settings import PROJECT_ROOT


@pytest.fixture(scope="module")
def register() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "deployments_register", PROJECT_ROOT / "deployments" / "register.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module


def client(answers: list[int | None]) -> httpx.Client:
    """Return a client whose requests are answered by these codes in turn, None by nothing in time."""

    def answer(request: httpx.Request) -> httpx.Response:
        code = answers.pop(0)
        if code is None:
            raise httpx.ReadTimeout("slow", request=request)
        return httpx.Response(code, json={"name": "gpu"})

    return httpx.Client(base_url="http://prefect.example/api/", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize("answers", [[None, 200], [None, None, None, 200], [503, None, 200]])
def test_a_server_that_answers_late_is_asked_again(
    register: ModuleType, monkeypatch: pytest.MonkeyPatch, answers: list[int | None]
) -> None:
    monkeypatch.setattr(register.time, "sleep", lambda _: None)
    assert register._send(client(answers), "GET", "work_pools/gpu") == {"name": "gpu"}
    assert answers == []


def test_a_server_that_never_answers_is_given_up(register: ModuleType) -> None:
    with pytest.raises(httpx.ReadTimeout):
        register._send(client([None] * 4), "GET", "work_pools/gpu")
