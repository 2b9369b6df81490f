"""Settings: what the environment may say, and what it means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.errors import ConfigError
from training.settings import load_settings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours is set, and the working folder holds no .env."""
    for name in ("OWNVOICE_HOME", "OWNVOICE_SERVING", "OLLAMA_BASE_URL", "DATABASE_URL", "OWNVOICE_ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_with_nothing_set_every_part_is_embedded() -> None:
    settings = load_settings()
    assert (settings.engine, settings.database_url, settings.prefect_api_url) == ("llamacpp", None, None)
    assert settings.home.name == ".ownvoice" and settings.storage == f"{settings.home}/storage"


def test_an_ollama_address_alone_chooses_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:11434/api")
    assert load_settings().engine == "ollama"
    monkeypatch.setenv("OWNVOICE_SERVING", "llamacpp")
    assert load_settings().engine == "llamacpp"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("http://127.0.0.1:11434/api", "ollama:127.0.0.1:11434"),
        ("http://127.0.0.1:11434", "ollama:127.0.0.1:11434"),
        ("http://GPU-7.example.org/api", "ollama:gpu-7.example.org:80"),
        ("https://user:secret@ollama.example.org/tenants/a%20b?x=1", "ollama:ollama.example.org:443"),
        ("gpu-7:11500", "ollama:gpu-7:11500"),
        ("http://[fd00::7%25eth0]:11434", "ollama:fd00::7-25eth0:11434"),
    ],
)
def test_one_ollama_server_has_one_limit_whatever_its_address_looks_like(
    given: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.types.names import WITHOUT_BANNED_CHARACTERS

    assert load_settings().serving_limit is None, "the embedded engine is nobody else's"
    monkeypatch.setenv("OLLAMA_BASE_URL", given)
    assert load_settings().serving_limit == name
    assert re.match(WITHOUT_BANNED_CHARACTERS, name)


def test_an_address_that_is_none_names_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://ollama:eleven")
    with pytest.raises(ConfigError, match="OLLAMA_BASE_URL is not an address"):
        _ = load_settings().serving_limit


@pytest.mark.parametrize("given", ["here", "~/there"])
def test_home_means_the_same_folder_in_every_process(
    given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OWNVOICE_HOME", given)
    assert load_settings().home == tmp_path / Path(given).name


def test_an_unusable_value_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNVOICE_HOURLY_PRICE", "cheap")
    with pytest.raises(ConfigError, match="OWNVOICE_HOURLY_PRICE is not usable"):
        load_settings()


def test_a_gpu_worker_reads_no_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DATABASE_URL=postgresql://anna:secret@127.0.0.1/own\n")
    assert load_settings().database_url is not None
    monkeypatch.setenv("OWNVOICE_ENV_FILE", "")
    assert load_settings().database_url is None


def test_a_password_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://anna:secret@127.0.0.1/own")
    assert "secret" not in repr(load_settings())


@pytest.mark.parametrize(
    "url", ["app.example.org/hook", "ftp://anna:secret@app/hook", "https:///hook", "http://app:secret/hook"]
)
def test_a_webhook_url_without_http_and_host_is_refused_unquoted(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINE_TUNING_WEBHOOK_URL", url)
    with pytest.raises(ConfigError, match=r"FINE_TUNING_WEBHOOK_URL is not usable.*https://app") as refused:
        load_settings()
    # The cause is printed with every traceback.
    assert "secret" not in f"{refused.value} {refused.value.__cause__}"


def test_webhooks_are_off_when_the_variables_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINE_TUNING_WEBHOOK_URL", "")
    monkeypatch.setenv("INTERNAL_API_KEY", " ")
    settings = load_settings()
    assert (settings.webhook_url, settings.internal_api_key) == (None, None)
    monkeypatch.setenv("FINE_TUNING_WEBHOOK_URL", "https://anna:secret@app.example.org/hook")
    settings = load_settings()
    assert settings.webhook_url == "https://anna:secret@app.example.org/hook" and "secret" not in repr(
        settings
    )
