"""The networks: small CNNs over one-channel inputs [batch, 1, height, width]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Residual(nn.Module):  # type: ignore[misc, unused-ignore]
    """Basic residual block: [b, inputs, h, w] -> [b, outputs, h / stride, w / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_bn_relu(inputs, outputs, stride=stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skip = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolved input and the (projected) input."""
        return torch.relu(self.body(x) + self.skip(x))


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    """Return a "same" convolution, its batch normalization and a ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


def separable(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """Return a depthwise-separable convolution: depthwise 3x3, then pointwise 1x1."""
    depthwise = conv_bn_relu(inputs, inputs, stride=stride, groups=inputs)
    return (*depthwise, *conv_bn_relu(inputs, outputs, kernel=1))


def pooled_classifier(channels: int, classes: int) -> tuple[nn.Module, ...]:
    """Return global average pooling and a linear layer: [b, channels, h, w] -> [b, classes]."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)


def residual_cnn(classes: int) -> nn.Sequential:
    """Return a residual CNN over 28x28 images with widths 16, 32 and 64."""
    return nn.Sequential(
        *conv_bn_relu(1, 16),
        Residual(16, 16),
        Residual(16, 32, stride=2),
        Residual(32, 64, stride=2),
        *pooled_classifier(64, classes),
    )


def separable_cnn(classes: int) -> nn.Sequential:
    """Return a depthwise-separable CNN over 28x28 images with widths 16 to 128."""
    return nn.Sequential(
        *conv_bn_relu(1, 16),
        *separable(16, 32),
        *separable(32, 64, stride=2),
        *separable(64, 64),
        *separable(64, 128, stride=2),
        *separable(128, 128),
        *pooled_classifier(128, classes),
    )


def plain_cnn(classes: int) -> nn.Sequential:
    """Return a VGG-like CNN over 28x28 images: three double-convolution stages and two linear layers."""
    return nn.Sequential(
        *conv_bn_relu(1, 16),
        *conv_bn_relu(16, 16),
        nn.MaxPool2d(2),
        *conv_bn_relu(16, 32),
        *conv_bn_relu(32, 32),
        nn.MaxPool2d(2),
        *conv_bn_relu(32, 64),
        *conv_bn_relu(64, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(576, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def spectrogram_cnn(classes: int, widths: Sequence[int]) -> nn.Sequential:
    """Return a CNN over log-mel frames [b, 1, bands, frames]: a convolution and a pooling per width."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip([1, *widths[:-1]], widths, strict=True):
        layers += [*conv_bn_relu(inputs, outputs), nn.MaxPool2d(2)]
    return nn.Sequential(*layers[:-1], *pooled_classifier(widths[-1], classes))


def backbone() -> nn.Sequential:
    """Return the trunk that the shared-backbone tasks have in common: [b, 1, 28, 28] -> [b, 48, 7, 7]."""
    return nn.Sequential(
        *conv_bn_relu(1, 16, kernel=5, stride=2),
        *conv_bn_relu(16, 32),
        Residual(32, 32),
        *conv_bn_relu(32, 48, stride=2),
    )


def convolutional_head(classes: int) -> nn.Sequential:
    """Return a head with a 3x3 convolution and global pooling: [b, 48, 7, 7] -> [b, classes]."""
    return nn.Sequential(nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), *pooled_classifier(64, classes))


def bottleneck_head(classes: int) -> nn.Sequential:
    """Return a head with a 1x1 bottleneck and one linear layer: [b, 48, 7, 7] -> [b, classes]."""
    return nn.Sequential(nn.Conv2d(48, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 49, classes))


def linear_head(classes: int) -> nn.Sequential:
    """Return a head with max pooling and two linear layers: [b, 48, 7, 7] -> [b, classes]."""
    return nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48 * 9, 32), nn.ReLU(), nn.Linear(32, classes))


def fold_batch_norm(net: nn.Module) -> None:
    """Fold every batch normalization into the convolution before it, in place and in eval mode."""
    for child in net.children():
        fold_batch_norm(child)
    if not isinstance(net, nn.Sequential):
        return
    for index in range(len(net) - 1):
        conv, norm = net[index], net[index + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            net[index] = nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
            net[index + 1] = nn.Identity()
