"""SqueezeNet (Iandola et al. 2016) up to its last fire module, for its features: versions 1.0 and 1.1.

Weights are arrays by name: `conv1/w`, `conv1/b`, then for each fire module `fire2/conv1x1_1` (squeeze) and
`fire2/conv1x1_2`, `fire2/conv3x3_2` (expand) up to `fire9`.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.runtime.constants import beside
from pipeline.runtime.errors import UserError

Scale = Literal["imagenet", "caffe"]
Arrays = Mapping[str, npt.NDArray[np.floating]]

# What pixels of 0 to 1 are shifted and divided by: torchvision's numbers for RGB, Caffe's for BGR of 0 to 255.
_SCALES: dict[Scale, tuple[Tensor, Tensor]] = {
    "imagenet": (torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))),
    "caffe": (torch.tensor((104 / 255, 117 / 255, 123 / 255)), torch.tensor([1 / 255] * 3)),
}
_SQUEEZE, _EXPAND_1, _EXPAND_3 = "conv1x1_1", "conv1x1_2", "conv3x3_2"
_FIRES = range(2, 10)
_POOLED = {"1.0": ("fire2", "fire5", "fire9"), "1.1": ("fire2", "fire4", "fire6")}  # maxima are taken before these
_TAPS = ("fire3", "fire5", "fire6", "fire7", "fire8", "fire9")  # with conv1: where LPIPS looks


class SqueezeNet(nn.Module):
    """Images [B, 1 or 3, H, W] in [-1, 1] -> seven maps of features, [B, C, h, w] each, after their ReLU.

    The maps are those of LPIPS: the first convolution, then fire modules 3, 5, 6, 7, 8 and 9.
    """

    def __init__(self, arrays: Arrays, *, scale: Scale) -> None:
        """Raises UserError where `arrays` are those of another network."""
        super().__init__()
        self.version, self.scale = _version(arrays), scale
        tapped = ["conv1", *(f"{n}/{part}" for n in _TAPS for part in (_EXPAND_1, _EXPAND_3))]
        widths = [len(arrays[f"{name}/b"]) for name in tapped]
        self.channels = [widths[0], *(one + three for one, three in zip(widths[1::2], widths[2::2], strict=True))]
        self.layers = nn.ModuleDict()
        for name in _layers():
            self.layers[name.replace("/", "_")] = _convolution(arrays, name)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        x = images.flip(1) if self.scale == "caffe" else images
        mean, deviation = (beside(known, x)[:, None, None] for known in _SCALES[self.scale])
        x = ((x + 1) / 2 - mean) / deviation  # one channel becomes three
        x = functional.relu(self.layers["conv1"](x))
        found = [x]
        for number in _FIRES:
            name = f"fire{number}"
            if name in _POOLED[self.version]:
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            x = self._fire(x, name)
            if name in _TAPS:
                found.append(x)
        return found

    def _fire(self, x: Tensor, name: str) -> Tensor:
        x = functional.relu(self.layers[f"{name}_{_SQUEEZE}"](x))
        one, three = self.layers[f"{name}_{_EXPAND_1}"](x), self.layers[f"{name}_{_EXPAND_3}"](x)
        return functional.relu(torch.cat([one, three], dim=1))


def _layers() -> list[str]:
    return ["conv1", *(f"fire{n}/{part}" for n in _FIRES for part in (_SQUEEZE, _EXPAND_1, _EXPAND_3))]


def _version(arrays: Arrays) -> str:
    missing = [f"{name}/{part}" for name in _layers() for part in "wb" if f"{name}/{part}" not in arrays]
    if missing:
        raise UserError(
            f"found no array '{missing[0]}' (and {len(missing) - 1} more), expected the weights of SqueezeNet: "
            "conv1/w, conv1/b, fire2/conv1x1_1/w ... fire9/conv3x3_2/b."
        )
    versions = {(96, 3, 7, 7): "1.0", (64, 3, 3, 3): "1.1"}
    shape = arrays["conv1/w"].shape
    if shape not in versions:
        raise UserError(
            f"found conv1/w of shape {list(shape)}, expected {' or '.join(str(list(s)) for s in versions)}."
        )
    return versions[shape]


def _convolution(arrays: Arrays, name: str) -> nn.Conv2d:
    weight, bias = (torch.from_numpy(np.asarray(arrays[f"{name}/{part}"], np.float32)) for part in "wb")
    outputs, inputs, size, _ = weight.shape
    padding = 1 if name.endswith(_EXPAND_3) else 0
    layer = nn.Conv2d(inputs, outputs, size, stride=2 if name == "conv1" else 1, padding=padding)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
