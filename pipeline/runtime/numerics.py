"""How a GPU computes: the one place that sets TF32, determinism and cuDNN, and says what it set.

Left alone, torch rounds float32 convolutions to TF32 (10 bits of mantissa) and float32 products not, and cuDNN may take
an algorithm that gives other bits each time. Here float32 is float32 unless a run asks for tf32, and two runs of the
same step give the same bits: an operation of which torch has no such form raises and says its name. Timing algorithms
to choose one (cudnn.benchmark) is off: a restart could choose another.
"""

import contextlib
import ctypes
import os
from typing import Any

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def set_numerics(*, tf32: bool = False) -> dict[str, Any]:
    """Set them for this process, before its first operation on a GPU; return what was set, for the records.

    `tf32`: let tensor cores round the inputs of float32 products and convolutions to TF32.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS splits sums as it likes
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if torch.cuda.is_available():
        # With `warn_only` attention would warn and keep its algorithm that sums in any order.
        torch.use_deterministic_algorithms(True)
    else:  # the same setting, without the import of the compiler, which is most of a short start
        torch.set_deterministic_debug_mode("default")
        _keep_freed_memory()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that writes all new memory
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # torch has no types here
    return {"tf32": tf32, "cudnn": cudnn, "deterministic": torch.cuda.is_available()}


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones, up to 1 GiB and for tensors of at most 32 MiB.

    It gives them back to the system by default, and each step gets its memory again page by page: a fifth of a
    training step on a CPU. Other C libraries are left as they are.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def own_precision(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """No autocast around what is computed of `x`. The meta device, where costs are counted, has none to leave."""
    return contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
