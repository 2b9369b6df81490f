"""Which memory allocator a training process is started with."""

from __future__ import annotations

import pytest

from training import allocator


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The libraries that the system has, by their short names."""
    names: set[str] = set()
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so.4" if name in names else None)
    return names


def test_tcmalloc_is_preloaded_where_it_is_installed(installed: set[str]) -> None:
    installed |= {"tcmalloc", "tcmalloc_minimal"}
    assert allocator.allocator_environment({}) == {"LD_PRELOAD": "libtcmalloc_minimal.so.4"}
    installed.remove("tcmalloc_minimal")
    assert allocator.allocator_environment({"LD_PRELOAD": ""}) == {"LD_PRELOAD": "libtcmalloc.so.4"}


def test_nothing_changes_without_it_or_where_somebody_chose(installed: set[str]) -> None:
    assert allocator.allocator_environment({}) == {}
    installed.add("tcmalloc_minimal")
    assert allocator.allocator_environment({"LD_PRELOAD": "libjemalloc.so.2"}) == {}


def test_only_linux_preloads(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    installed.add("tcmalloc_minimal")
    monkeypatch.setattr("sys.platform", "darwin")
    assert allocator.find_allocator() is None
