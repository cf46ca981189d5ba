"""FID's InceptionV3 of 2015-12-05, as a function of its weights, which decide how far it goes.

Batch norm is folded, and convolutions that share an input are joined. The architecture is that of the TensorFlow graph
(Szegedy et al. 2015 with the graph's own deviations): average pools do not count the padding, and the last block's pool
is a maximum. It gives the features named in the literature by their number: 64, 192, 768, 2048, the `spatial` ones of
sFID (Nash et al. 2021), and logits of 1008 classes without bias.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Weights = Mapping[str, tuple[Tensor, Tensor]]  # convolution -> (weight [out, in, kh, kw], bias [out])

STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
# Block -> its branches in the order of their outputs; a branch is a chain of convolutions. The first convolutions of
# the branches that begin with a 1x1 are one convolution here. A tuple is two that read the same input, side by side.
_A = (("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
_B = (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
_C = (
    ("branch1x1",),
    ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
    ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
)
_D = (("branch3x3_1", "branch3x3_2"), ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"))
_E: tuple[tuple[str | tuple[str, str], ...], ...] = (
    ("branch1x1",),
    ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
    ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
)
AVERAGE, MAXIMUM, HALVE = "average", "maximum", "halve"  # of a block's pool branch; "halve" has no convolution
BLOCKS: dict[str, tuple[Sequence[Sequence[str | tuple[str, str]]], str]] = {
    "Mixed_5b": (_A, AVERAGE),
    "Mixed_5c": (_A, AVERAGE),
    "Mixed_5d": (_A, AVERAGE),
    "Mixed_6a": (_B, HALVE),
    "Mixed_6b": (_C, AVERAGE),
    "Mixed_6c": (_C, AVERAGE),
    "Mixed_6d": (_C, AVERAGE),
    "Mixed_6e": (_C, AVERAGE),
    "Mixed_7a": (_D, HALVE),
    "Mixed_7b": (_E, AVERAGE),
    "Mixed_7c": (_E, MAXIMUM),
}
# Convolutions without padding that are larger than 1x1; those of the blocks that halve have stride 2, as the first has.
_VALID = {"Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3"}
_STRIDED = {
    "Conv2d_1a_3x3",
    "Mixed_6a.branch3x3",
    "Mixed_6a.branch3x3dbl_3",
    "Mixed_7a.branch3x3_2",
    "Mixed_7a.branch7x7x3_4",
}
SPATIAL_CHANNELS = 7  # of the first branch of Mixed_6d (`mixed_6/conv` in the graph), 17 x 17 each: 2023 numbers
SIZE = 299


def convolutions() -> list[str]:
    """Names of all convolutions, as the weight files of pytorch-fid and torch-fidelity have them, in order of use."""
    names = list(STEM)
    for block, (branches, pool) in BLOCKS.items():
        for branch in branches:
            for step in branch:
                names += [f"{block}.{name}" for name in ((step,) if isinstance(step, str) else step)]
        if pool != HALVE:
            names.append(f"{block}.branch_pool")
    return names


class Convolution(nn.Module):
    """A convolution with bias, and a ReLU. On a CPU both are one call of oneDNN where torch has it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int, padded: bool, relu: bool = True) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.detach().clone())
        self.stride = [stride, stride]
        self.padding = [k // 2 if padded else 0 for k in weight.shape[2:]]
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W']."""
        if x.device.type == "cpu" and x.dtype == torch.float32 and _FUSED is not None:
            after = "relu" if self.relu else "none"
            out: Tensor = _FUSED(x, self.weight, self.bias, self.padding, self.stride, [1, 1], 1, after, [], "")
            return out
        out = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return out.relu_() if self.relu else out


# An operator that torch's own compiler emits; a build without oneDNN does not have it.
_FUSED: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None) if torch.backends.mkldnn.enabled else None


class Block(nn.Module):
    """One `Mixed` block: branches side by side."""

    def __init__(self, name: str, weights: Weights) -> None:
        super().__init__()
        branches, self.pool = BLOCKS[name]
        self.joined = [k for k, b in enumerate(branches) if weights[f"{name}.{b[0]}"][0].shape[2:] == (1, 1)]
        firsts = [f"{name}.{branches[k][0]}" for k in self.joined]
        self.widths = [len(weights[first][1]) for first in firsts]
        if self.pool == AVERAGE:
            # Averaging and a 1x1 convolution exchange: the pool then reads the few channels that come out.
            firsts.append(f"{name}.branch_pool")
            self.widths.append(len(weights[firsts[-1]][1]))
        self.first = _join(firsts, weights, relu=self.pool != AVERAGE) if firsts else None
        self.after_pool = _build(f"{name}.branch_pool", weights) if self.pool == MAXIMUM else None
        self.branches = nn.ModuleList()
        for k, branch in enumerate(branches):
            rest = branch[1:] if k in self.joined else branch
            self.branches.append(nn.Sequential(*(_step(name, step, weights) for step in rest)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the branches' outputs side by side."""
        starts = [x] * len(self.branches)
        pooled = None
        if self.first is not None:
            parts = list(self.first(x).split(self.widths, dim=1))
            if self.pool == AVERAGE:
                pooled = functional.avg_pool2d(parts.pop(), 3, 1, 1, count_include_pad=False).relu_()
                parts = [part.relu() for part in parts]
            for k, part in zip(self.joined, parts, strict=True):
                starts[k] = part
        if self.pool == MAXIMUM and self.after_pool is not None:
            pooled = self.after_pool(functional.max_pool2d(x, 3, 1, 1))
        if pooled is None:
            pooled = functional.max_pool2d(x, 3, 2)
        outputs = [branch(start) for branch, start in zip(self.branches, starts, strict=True)]
        return torch.cat([*outputs, pooled], 1)


class SideBySide(nn.Module):
    """Two convolutions of one input, their outputs joined."""

    def __init__(self, one: Convolution, other: Convolution) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out + out, H, W]."""
        return torch.cat([self.one(x), self.other(x)], 1)


def _build(name: str, weights: Weights) -> Convolution:
    strided = name in _STRIDED
    return Convolution(*weights[name], stride=2 if strided else 1, padded=not (strided or name in _VALID))


def _step(block: str, step: str | tuple[str, str], weights: Weights) -> nn.Module:
    if isinstance(step, str):
        return _build(f"{block}.{step}", weights)
    return SideBySide(_build(f"{block}.{step[0]}", weights), _build(f"{block}.{step[1]}", weights))


def _join(names: Sequence[str], weights: Weights, *, relu: bool) -> Convolution:
    """Several 1x1 convolutions of one input as one."""
    weight, bias = (torch.cat([weights[name][k] for name in names]) for k in (0, 1))
    return Convolution(weight, bias, stride=1, padded=True, relu=relu)


class InceptionV3(nn.Module):
    """The network as far as its weights go. `head` [1008, 2048] is the last layer's weight, if there is one."""

    head: Tensor | None

    def __init__(self, weights: Weights, head: Tensor | None = None) -> None:
        super().__init__()
        missing = [name for name in STEM if name not in weights]
        if missing:
            raise ValueError(f"the weights lack {', '.join(missing)}")
        self.stem = nn.ModuleList(_build(name, weights) for name in STEM)
        names = [name for name in BLOCKS if f"{name}.{BLOCKS[name][0][0][0]}" in weights]
        self.blocks = nn.ModuleDict({name: Block(name, weights) for name in names})
        self.register_buffer("head", None if head is None else head.detach().clone())

    @property
    def outputs(self) -> tuple[str, ...]:
        """The features that these weights reach."""
        found = ["64", "192"]
        for block, output in (("Mixed_6d", "spatial"), ("Mixed_6e", "768"), ("Mixed_7c", "2048")):
            if block in self.blocks:
                found.append(output)
        if "Mixed_7c" in self.blocks and self.head is not None:
            found.append("logits")
        return tuple(found)

    def forward(self, x: Tensor, outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Images [B, 3, 299, 299], already (pixel - 128) / 128 -> the features asked for, [B, D] each.

        The network runs only as far as the deepest of them.
        """
        wanted = set(self.outputs if outputs is None else outputs)
        found: dict[str, Tensor] = {}
        x = x.contiguous(memory_format=torch.channels_last)
        for position, layer in enumerate(self.stem):
            x = layer(x)
            if position in (2, 4):
                x = functional.max_pool2d(x, 3, 2)
                found["64" if position == 2 else "192"] = x.mean((2, 3))
                if wanted <= found.keys():
                    break
        for name, block in self.blocks.items():
            if wanted <= found.keys():
                break
            x = block(x)
            if name == "Mixed_6d":
                found["spatial"] = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            elif name in ("Mixed_6e", "Mixed_7c"):
                found["768" if name == "Mixed_6e" else "2048"] = x.mean((2, 3))
        if "logits" in wanted and self.head is not None and "2048" in found:
            found["logits"] = found["2048"] @ self.head.T
        return {output: found[output] for output in wanted}
