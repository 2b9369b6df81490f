"""The device that trains: what depends on CUDA or CPU, in one place."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from training.machine_memory import free_machine_bytes, peak_process_bytes


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_bytes(device: torch.device) -> list[int]:
    """Return the memory that is free now: one number per GPU, or the machine's (a container's) on CPU."""
    if device.type == "cuda":
        return [torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count())]
    return [free_machine_bytes()]


def attention_for(
    device_type: str, precision: str, *, capability: tuple[int, int] | None, flash_installed: bool
) -> str:
    """Return which attention trains: `ragged` (attention.py), `varlen` or `sdpa` (cuda_attention.py).

    FlashAttention-2 takes rows of different lengths without padding (Dao 2023, arXiv 2307.08691); it wants
    half precision and an Ampere GPU (compute capability 8.0) or newer. SDPA is PyTorch's own.
    """
    if device_type != "cuda":
        return "ragged"
    ampere = capability is not None and capability >= (8, 0)
    return "varlen" if flash_installed and ampere and precision == "bf16" else "sdpa"


def attention_here(device: torch.device, precision: str) -> str:
    """Return `attention_for` of this device and what is installed."""
    capability = None
    if device.type == "cuda":
        capability = min(torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count()))
    installed = importlib.util.find_spec("flash_attn") is not None
    return attention_for(device.type, precision, capability=capability, flash_installed=installed)


def random_state() -> dict[str, Any]:
    """Return the state of every random generator that dropout draws from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Go on drawing where `random_state` was taken; GPUs that are not here any more are left out."""
    torch.set_rng_state(state["cpu"].cpu())
    for number, of_gpu in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(of_gpu.cpu(), number)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process (CPU) or its GPUs (CUDA) ever held, in bytes."""
    if device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(n) for n in range(torch.cuda.device_count()))
    return peak_process_bytes()


def device_name(device: torch.device, gpus: int = 1) -> str:
    """Return the GPU's product name, with their number in front of several, or `cpu (<n> threads)`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return name if gpus == 1 else f"{gpus} x {name}"
    threads = torch.get_num_threads()
    return f"cpu ({threads} {'thread' if threads == 1 else 'threads'})"
