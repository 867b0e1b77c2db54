#!/usr/bin/env python3
"""Prints tests/models/pytorch.tsv: each model written in PyTorch, its loss and gradient norm in float64 for weights that both
sides make by the same formula (`pip install torch numpy`).

    python3 scripts/model_vectors.py > tests/models/pytorch.tsv

Narrow models, as in tests/models/pytorch.rs: channels divided by 16, hidden layers of 24 units, 10 classes, 8 samples.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

RATIO, HIDDEN, CLASSES, BATCH = 16, 24, 10, 8


def unit(stream, n):
    """n numbers in [0, 1) of that stream: SplitMix64, which is a few lines in any language."""
    z = np.uint64(stream << 32) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def wide(channels):
    return max(channels // RATIO, 1)


# Layers with the activation and the flattening inside, so that the parts of the nets have hadal's paths.
class Conv(nn.LazyConv2d):
    def __init__(self, channels, kernel, stride=1, padding=0, relu=False, bias=True):
        super().__init__(channels, kernel, stride=stride, padding=padding, bias=bias)
        self.register_forward_hook(lambda _m, _x, y: y.relu() if relu else y)


class Dense(nn.LazyLinear):
    def __init__(self, units, f=None):
        super().__init__(units)
        self.register_forward_pre_hook(lambda _m, x: (x[0].flatten(1),), prepend=True)
        self.register_forward_hook(lambda _m, _x, y: f(y) if f else y)


S, BN, Relu, Max, Drop = nn.Sequential, nn.LazyBatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Dropout


def conv_relu(channels, *args):
    return Conv(wide(channels), *args, relu=True)


def head():
    return [Dense(HIDDEN, F.relu), Drop(0.5), Dense(HIDDEN, F.relu), Drop(0.5), Dense(CLASSES)]


def pooled_head():
    return [nn.AdaptiveAvgPool2d(1), Dense(CLASSES)]


def lenet():
    sig = torch.sigmoid
    convs = [Conv(6, 5), Conv(16, 5)]
    for c in convs:
        c.register_forward_hook(lambda _m, _x, y: sig(y))
    return S(convs[0], Max(2), convs[1], Max(2), Dense(120, sig), Dense(84, sig), Dense(CLASSES))


def alexnet():
    c = conv_relu
    return S(
        c(96, 11, 4), Max(3, 2), c(256, 5, 1, 2), Max(3, 2),
        c(384, 3, 1, 1), c(384, 3, 1, 1), c(256, 3, 1, 1), Max(3, 2), *head(),
    )  # fmt: skip


def vgg(*convs):
    blocks = [S(*[conv_relu(c, 3, 1, 1) for _ in range(n)], Max(2)) for n, c in zip(convs, (64, 128, 256, 512, 512))]
    return S(*blocks, *head())


def nin():
    def block(c, *args):
        return S(Conv(c, *args, relu=True), Conv(c, 1, relu=True), Conv(c, 1, relu=True))

    return S(
        block(wide(96), 11, 4, 0), Max(3, 2), block(wide(256), 5, 1, 2), Max(3, 2), block(wide(384), 3, 1, 1), Max(3, 2),
        Drop(0.5), block(CLASSES, 3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Inception(nn.Module):
    def __init__(self, c1, r3, c3, r5, c5, c4):
        super().__init__()
        self.p1_1 = conv_relu(c1, 1)
        self.p2_1, self.p2_2 = conv_relu(r3, 1), conv_relu(c3, 3, 1, 1)
        self.p3_1, self.p3_2 = conv_relu(r5, 1), conv_relu(c5, 5, 1, 2)
        self.p4_2 = conv_relu(c4, 1)

    def forward(self, x):
        p2, p3, p4 = self.p2_2(self.p2_1(x)), self.p3_2(self.p3_1(x)), self.p4_2(F.max_pool2d(x, 3, 1, 1))
        return torch.cat([self.p1_1(x), p2, p3, p4], 1)


def googlenet():
    def pool():
        return Max(3, 2, 1)

    table = [
        [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)],
        [(192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
         (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128)],
        [(256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)],
    ]  # fmt: skip
    b3, b4, b5 = ([Inception(*row) for row in rows] for rows in table)
    return S(
        S(conv_relu(64, 7, 2, 3), pool()), S(conv_relu(64, 1), conv_relu(192, 3, 1, 1), pool()),
        S(*b3, pool()), S(*b4, pool()), S(*b5, nn.AdaptiveAvgPool2d(1)), Dense(CLASSES),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, c, entry, stride):
        super().__init__()
        self.conv1, self.conv2, self.bn1, self.bn2 = Conv(c, 3, stride, 1), Conv(c, 3, 1, 1), BN(), BN()
        self.conv3 = Conv(c, 1, stride) if entry and stride > 1 else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.conv3(x)).relu()


class Bottleneck(nn.Module):
    def __init__(self, c, entry, stride):
        super().__init__()
        self.conv1, self.conv2 = Conv(c, 1, bias=False), Conv(c, 3, stride, 1, bias=False)
        self.conv3, self.bn1, self.bn2, self.bn3 = Conv(4 * c, 1, bias=False), BN(), BN(), BN()
        self.shortcut = S(Conv(4 * c, 1, stride, bias=False), BN()) if entry else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(y)) + self.shortcut(x)).relu()


def resnet(block, *blocks):
    stages = []
    for n, c in zip(blocks, (64, 128, 256, 512)):
        stages.append(S(*[block(wide(c), i == 0, 2 if i == 0 and stages else 1) for i in range(n)]))
    return S(Conv(wide(64), 7, 2, 3, bias=block is Residual), BN(), Relu(), Max(3, 2, 1), *stages, *pooled_head())


class DenseBlock(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.net = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.net:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet(bottleneck, *convs):
    c, g = wide(64), wide(32)
    bias = not bottleneck

    def layer():
        reduce = [BN(), Relu(), Conv(4 * g, 1, bias=False)] if bottleneck else []
        return S(*reduce, BN(), Relu(), Conv(g, 3, 1, 1, bias=bias))

    net = [Conv(c, 7, 2, 3, bias=bias), BN(), Relu(), Max(3, 2, 1)]
    for i, n in enumerate(convs):
        if i > 0:
            c //= 2
            net.append(S(BN(), Relu(), Conv(c, 1, bias=bias), nn.AvgPool2d(2)))
        net.append(DenseBlock([layer() for _ in range(n)]))
        c += n * g
    return S(*net, BN(), Relu(), *pooled_head())


MODELS = {
    "softmax_regression": (28, lambda: S(Dense(CLASSES))),
    "mlp": (28, lambda: S(Dense(HIDDEN, F.relu), Dense(CLASSES))),
    "dropout_mlp": (28, lambda: S(Dense(HIDDEN, F.relu), Drop(0.2), Dense(HIDDEN, F.relu), Drop(0.5), Dense(CLASSES))),
    "lenet": (28, lenet),
    "alexnet": (67, alexnet),
    "vgg11": (32, lambda: vgg(1, 1, 2, 2, 2)),
    "vgg13": (32, lambda: vgg(2, 2, 2, 2, 2)),
    "vgg16": (32, lambda: vgg(2, 2, 3, 3, 3)),
    "vgg19": (32, lambda: vgg(2, 2, 4, 4, 4)),
    "nin": (67, nin),
    "googlenet": (32, googlenet),
    "resnet18": (64, lambda: resnet(Residual, 2, 2, 2, 2)),
    "resnet34": (64, lambda: resnet(Residual, 3, 4, 6, 3)),
    "resnet50": (64, lambda: resnet(Bottleneck, 3, 4, 6, 3)),
    "resnet101": (64, lambda: resnet(Bottleneck, 3, 4, 23, 3)),
    "resnet152": (64, lambda: resnet(Bottleneck, 3, 8, 36, 3)),
    "densenet": (64, lambda: densenet(False, 4, 4, 4, 4)),
    "densenet121": (64, lambda: densenet(True, 6, 12, 24, 16)),
}


def fill(net):
    """Weights by the formula, a stream each, in the order of hadal's names."""
    values = []
    for path, layer in net.named_modules():
        for name, p in layer.named_parameters(recurse=False):
            norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            name = {"weight": "gamma", "bias": "beta"}[name] if norm else name
            values.append((f"{path}.{name}", name, p))
    for stream, (_, name, p) in enumerate(sorted(values, key=lambda v: v[0])):
        u = 2 * unit(stream, p.numel()) - 1
        if name == "weight":
            u *= np.sqrt(6 / (p.numel() // p.shape[0]))
        else:
            # Small scales keep what goes around the short cuts small, and with it the roundings that a hundred blocks add up.
            u = 0.1 * u + (0.3 if name == "gamma" else 0)
        p.data = torch.from_numpy(u.astype(np.float32)).reshape(p.shape)


print(f"# PyTorch {torch.__version__.split('+')[0]}, float64, by scripts/model_vectors.py: model, side, loss, norm of the gradient of the sum of losses")
for name, (side, make) in MODELS.items():
    x = torch.from_numpy((2 * unit(1000, BATCH * side * side) - 1).astype(np.float32)).reshape(BATCH, 1, side, side)
    net = make().eval()
    net(x)
    fill(net)
    net.double()
    # Dropout draws differ, so nets with it predict; the others train, with the batch's own statistics.
    net.train(not any(isinstance(m, Drop) for m in net.modules()))
    loss = F.cross_entropy(net(x.double()), torch.arange(BATCH), reduction="sum")
    loss.backward()
    norm = sum((p.grad**2).sum() for p in net.parameters()).sqrt()
    print(f"{name}\t{side}\t{loss.item() / BATCH:.9g}\t{norm.item():.9g}")
