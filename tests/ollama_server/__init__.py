"""An Ollama for tests: the recorded rules of the real server, and real generation through llama.cpp.

A live Ollama cannot be had on a test machine, and a double that is wrong where Ollama is right is worse than
none. So this one is held against 205 recorded exchanges with live servers
(`tests/integration/test_ollama_server_replay.py`), answers 501 where it does not follow Ollama, and shares no
code with the packages under test.

    with OllamaServer(tmp_path) as ollama:
        ollama.preload_base("smollm2-base:q4", gguf_path)
        ...  # talk HTTP to ollama.url
"""

from tests.ollama_server.server import OllamaServer, Request

__all__ = ["OllamaServer", "Request"]
