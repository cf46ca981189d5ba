"""Tables of numbers that every step needs, copied to a device once.

Copying one in every step would make the host wait for the GPU each time.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_COPIES = WeakTensorKeyDictionary()  # table -> its copies by device and precision; both go when the table goes


def beside(table: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`table` on the device of `other`, in its precision or in `dtype`. Copied at the first call; never write to it."""
    key = (other.device, dtype or other.dtype)
    if (table.device, table.dtype) == key:
        return table
    copies = _COPIES.setdefault(table, {})
    if key not in copies:
        with torch.inference_mode(mode=False):  # whoever asks first, training may use the copy
            copies[key] = table.detach().to(*key)
    found: Tensor = copies[key]
    return found
