"""FID's InceptionV3 written out plainly, layer by layer, with its batch norms: a second way to the same features.

The layers, their names and the order of outputs are those of torch-fidelity's `FeatureExtractorInceptionV3` (0.4.0),
so a state dict of the one loads into the other.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Basic(nn.Module):
    def __init__(self, before: int, after: int, kernel, stride: int = 1, padding=0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def maximum(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 1, 1)


class A(nn.Module):
    def __init__(self, c: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Basic(c, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Basic(c, 48, 1), Basic(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Basic(c, 64, 1), Basic(64, 96, 3, padding=1)
        self.branch3x3dbl_3, self.branch_pool = Basic(96, 96, 3, padding=1), Basic(c, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average(x))], 1)


class B(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch3x3 = Basic(c, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Basic(c, 64, 1), Basic(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Basic(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class C(nn.Module):
    def __init__(self, c: int, m: int) -> None:
        super().__init__()
        wide, tall = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1, self.branch_pool = Basic(c, 192, 1), Basic(c, 192, 1)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = (
            Basic(c, m, 1),
            Basic(m, m, **wide),
            Basic(m, 192, **tall),
        )
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Basic(c, m, 1), Basic(m, m, **tall)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Basic(m, m, **wide), Basic(m, m, **tall)
        self.branch7x7dbl_5 = Basic(m, 192, **wide)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = x
        for layer in (self.branch7x7dbl_1, self.branch7x7dbl_2, self.branch7x7dbl_3, self.branch7x7dbl_4):
            double = layer(double)
        return torch.cat([self.branch1x1(x), seven, self.branch7x7dbl_5(double), self.branch_pool(average(x))], 1)


class D(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Basic(c, 192, 1), Basic(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Basic(c, 192, 1), Basic(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3, self.branch7x7x3_4 = Basic(192, 192, (7, 1), padding=(3, 0)), Basic(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, functional.max_pool2d(x, 3, 2)], 1)


class E(nn.Module):
    def __init__(self, c: int, pool) -> None:
        super().__init__()
        self.pool = pool
        wide, tall = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1, self.branch_pool = Basic(c, 320, 1), Basic(c, 192, 1)
        self.branch3x3_1, self.branch3x3_2a = Basic(c, 384, 1), Basic(384, 384, **wide)
        self.branch3x3_2b, self.branch3x3dbl_1 = Basic(384, 384, **tall), Basic(c, 448, 1)
        self.branch3x3dbl_2 = Basic(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Basic(384, 384, **wide), Basic(384, 384, **tall)

    def forward(self, x: Tensor) -> Tensor:
        three, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        outputs = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        outputs += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(self.pool(x))]
        return torch.cat(outputs, 1)


class PlainInception(nn.Module):
    """Random weights from a seed, with batch-norm statistics that are not trivial."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Basic(3, 32, 3, 2), Basic(32, 32, 3)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Basic(32, 64, 3, padding=1), Basic(64, 80, 1)
        self.Conv2d_4a_3x3 = Basic(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a = A(192, 32), A(256, 64), A(288, 64), B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = C(768, 128), C(768, 160), C(768, 160), C(768, 192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = D(768), E(1280, average), E(2048, maximum)
        self.fc = nn.Linear(2048, 1008)
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.8, 1.2, generator=generator)
                nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0, 0.1, generator=generator)
                nn.init.normal_(module.running_mean, 0, 0.1, generator=generator)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[B, 3, 299, 299], already (pixel - 128) / 128."""
        found = {}
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, 2)
        found["64"] = x.mean((2, 3))
        x = functional.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        found["192"] = x.mean((2, 3))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6c(self.Mixed_6b(x))
        found["spatial"] = self.Mixed_6d.branch1x1(x)[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        found["768"] = x.mean((2, 3))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        found["2048"] = x.mean((2, 3))
        found["logits"] = found["2048"] @ self.fc.weight.T
        return found
