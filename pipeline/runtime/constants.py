"""Tables of numbers that every step needs, copied to a device once.

Copying one in every step would make the host wait for the GPU each time.
"""

from collections.abc import MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Place = tuple[torch.device, torch.dtype]
# table -> its copies by place; they go when the table goes
_COPIES: MutableMapping[Tensor, dict[Place, Tensor]] = WeakTensorKeyDictionary()


def beside(table: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`table` on the device of `other`, in its precision or in `dtype`. Copied at the first call; never write to it."""
    key = (other.device, dtype or other.dtype)
    if (table.device, table.dtype) == key:
        return table
    copies = _COPIES.setdefault(table, {})
    if key not in copies:
        with torch.inference_mode(mode=False):  # whoever asks first, training may use the copy
            copies[key] = table.detach().to(*key)
    return copies[key]
