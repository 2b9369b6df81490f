"""One model with its adapters in one process, as Ollama runs llama-server; a script, not a module.

Prints `ready <url>` when it serves and ends when its standard input closes, so that it never outlives the
server that started it. A model or adapter that llama.cpp refuses ends it with exit status 1.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    import xllamacpp

    arguments = json.loads(sys.argv[1])
    params = xllamacpp.CommonParams()
    params.model.path = arguments["model"]
    params.n_ctx = arguments["num_ctx"]
    params.n_parallel = 1
    params.ctx_shift = arguments["context_shift"]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in arguments["adapters"]]
    params.warmup = False
    params.cache_ram_mib = 0
    # llama.cpp's threads wait for each other in a busy loop: two of them on two cores of which one is
    # taken by somebody else made 2.3 s per token, one thread 6 ms.
    params.cpuparams.n_threads = arguments["threads"]
    params.cpuparams_batch.n_threads = arguments["threads"]
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        sys.stderr.flush()
        os._exit(1)
    print(f"ready {server.listening_address}", flush=True)
    sys.stdin.read()
    # Without the orderly shutdown, which waits for a generation in progress.
    os._exit(0)


if __name__ == "__main__":
    main()
