"""The device that computes: which there is, at what precision, how photos get to it, and what running out of its memory looks like."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import warnings
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from accelerate.utils.memory import should_reduce_batch_size

# A CPU's step is 1.4 times as fast in channels_last (benchmarks/results.md), and on Apple's GPUs BatchNorm's gradients are wrong
# in it: github.com/pytorch/pytorch/issues/175189
MEMORY_FORMAT = torch.contiguous_format if torch.backends.mps.is_available() else torch.channels_last
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of glibc's malloc.h
# Beside what accelerate knows: CUDA's own word for it, and cuDNN's and cuBLAS's, which get no memory to work in.
SHORT_OF_MEMORY = ("out of memory", "unable to find an engine", "ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


class DeviceError(ValueError):
    """The device cannot be used; the message says why, and what to do."""


def choose_precision() -> tuple[str, str]:
    """Accelerate's name of the precision, and the reason in words. Raises DeviceError."""
    if not torch.cuda.is_available():
        return "no", "fp32 (no CUDA GPU)"
    if torch.version.cuda and not any(map(runs_here, torch.cuda.get_arch_list())):  # not of AMD's, whose names say something else
        major, minor = torch.cuda.get_device_capability()
        raise DeviceError(f"{torch.cuda.get_device_name()}: this PyTorch is not built for it ({major}.{minor}; it has "
                          f"{', '.join(torch.cuda.get_arch_list())}). Install one for an older CUDA, as pytorch.org says, or train on the "
                          "CPU: CUDA_VISIBLE_DEVICES= in front of the command.")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "bf16 mixed precision (the card has it)"
    return "fp16", "fp16 mixed precision with loss scaling (the card has no bf16)"


def runs_here(built_for: str) -> bool:
    """Whether code built for sm_75, say, or compute_75, which the driver compiles anew for any later card, runs on the card there is."""
    kind, major, minor = re.match(r"(\w+)_(\d+)(\d)", built_for).groups()
    card, oldest = torch.cuda.get_device_capability(), (int(major), int(minor))
    return card >= oldest and (card[0] == oldest[0] or kind == "compute")


def make_accelerator(**more) -> tuple[Accelerator, str]:
    """Accelerate on the best device there is, and its precision's reason in words. more: as Accelerator's. Raises DeviceError.

    Without a GPU it must be told to use the CPU: several processes would each train alone otherwise, and know nothing of the others.
    """
    # 1 x 1 convolutions in channels_last: one layout of memory under two names, for which several processes would be warned each.
    warnings.filterwarnings("ignore", message="(?s).*Grad strides do not match bucket view strides")
    precision, why = choose_precision()
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))          # one looks over all photos while the others wait
    return Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience], **more), why


def to_device(images: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """A loader's photos (B, V, 3, S, S), each in V views, or views (B, 3, S, S), as views on the device."""
    return images.flatten(0, -4).to(accelerator.device, memory_format=MEMORY_FORMAT, non_blocking=accelerator.device.type == "cuda")


def memory_ran_out(error: RuntimeError) -> bool:
    return should_reduce_batch_size(error) or any(sign in str(error) for sign in SHORT_OF_MEMORY)


@contextlib.contextmanager
def enough_memory(device: torch.device) -> Iterator[None]:
    """Within: memory that runs out on the device is a DeviceError."""
    try:
        yield
    except RuntimeError as error:
        if not memory_ran_out(error):
            raise
        elsewhere = "" if device.type == "cpu" else ", or answer on the CPU: CUDA_VISIBLE_DEVICES= in front of the command"
        raise DeviceError(f"memory ran out on {device}, even for one view of a photo. Close what else uses it{elsewhere}.") from error


def be_deterministic() -> None:
    """Only algorithms that give the same bits each time; slower on a GPU. An operation that has none raises."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")            # cuBLAS reads it when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False            # nothing here reads what it has not written
    torch.backends.cudnn.benchmark = False


def keep_memory() -> None:
    """Let glibc keep what it frees: a CPU step allocates the same tensors again, and fetching fresh pages from the
    system took a third of its time. Elsewhere (macOS, Windows, musl) allocators do so by themselves."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
