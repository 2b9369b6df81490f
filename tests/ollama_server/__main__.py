"""Run the tests' Ollama by hand: `python -m tests.ollama_server --models DIR --base smollm2:135m=PATH`."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from tests.ollama_server import OllamaServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ollama_server", description=__doc__)
    parser.add_argument("--port", type=int, default=11434, help="loopback port (0 takes a free one)")
    parser.add_argument("--models", type=Path, required=True, help="models folder, kept between runs")
    parser.add_argument("--base", action="append", default=[], metavar="NAME=GGUF", help="base to offer")
    parser.add_argument("--version", default="0.33.0-rc2", help="rules to follow (0.34 for the newer server)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a runner")
    arguments = parser.parse_args()
    server = OllamaServer(
        arguments.models, arguments.version, port=arguments.port, runner_threads=arguments.threads
    )
    for pair in arguments.base:
        name, _, path = pair.partition("=")
        print(f"{name} is {server.preload_base(name, Path(path))}")
    with server:
        print(f"tests' Ollama {server.version} on {server.url}; Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopping")


if __name__ == "__main__":
    main()
