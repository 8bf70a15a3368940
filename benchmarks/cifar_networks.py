"""Networks for images [n, 3, 32, 32] of ten classes, untrained: each gives scores [n, 10].

VGG-16 has batch normalisation and one linear layer (Simonyan and Zisserman 2014, arXiv 1409.1556, as used for
small images); ResNet-18 has a 3x3 stem without pooling, ResNet-20 three stages of 16, 32 and 64 channels (He et
al. 2015, arXiv 1512.03385). Where a residual block changes its shape its shortcut is a 1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

CLASSES = 10


def _convolution(channels: int, wanted: int, stride: int = 1) -> tuple[nn.Module, ...]:
    layer = nn.Conv2d(channels, wanted, 3, stride=stride, padding=1, bias=False)
    return layer, nn.BatchNorm2d(wanted), nn.ReLU()


def _plain(widths: Sequence[int | None], last: nn.Module) -> nn.Module:
    """3x3 convolutions of the given widths, None for pooling by two; then `last` and a linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        if width is None:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += _convolution(channels, width)
        channels = width
    return nn.Sequential(*layers, last, nn.Flatten(), nn.Linear(channels, CLASSES))


def vgg_like() -> nn.Module:
    """Seven 3x3 convolutions and a linear layer, 25.7 million multiply-adds: [n, 3, 32, 32] to [n, 10]."""
    return _plain((32, None, 48, 48, None, 96, 96, None, 192, 192), nn.AvgPool2d(4))


def vgg16() -> nn.Module:
    """Thirteen 3x3 convolutions of 64 to 512 channels and a linear layer, 313 million multiply-adds."""
    stages: tuple[int | None, ...] = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None)
    return _plain((*stages, 512, 512, 512), nn.AvgPool2d(2))


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut: [n, channels, h, w] to [n, wanted, h / stride, w / stride]."""

    def __init__(self, channels: int, wanted: int, stride: int) -> None:
        super().__init__()
        second = _convolution(wanted, wanted)[:2]
        self.path = nn.Sequential(*_convolution(channels, wanted, stride), *second)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != wanted:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, wanted, 1, stride=stride, bias=False), nn.BatchNorm2d(wanted)
            )
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.path(x) + self.shortcut(x))
        return made


def _residual(widths: Sequence[int], blocks: int) -> nn.Module:
    """A stem and a stage of residual blocks for every width; the image is halved before each but the first."""
    layers = [*_convolution(3, widths[0])]
    channels = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Residual(channels, width, 2 if stage and not block else 1))
            channels = width
    side = 32 >> (len(widths) - 1)
    return nn.Sequential(*layers, nn.AvgPool2d(side), nn.Flatten(), nn.Linear(channels, CLASSES))


def resnet18() -> nn.Module:
    """Four stages of two residual blocks, 64 to 512 channels, 555 million multiply-adds."""
    return _residual((64, 128, 256, 512), 2)


def resnet20() -> nn.Module:
    """Three stages of three residual blocks, 16 to 64 channels, 41 million multiply-adds."""
    return _residual((16, 32, 64), 3)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "vgg-cifar10": vgg_like,
    "vgg16-cifar10": vgg16,
    "resnet18-cifar10": resnet18,
    "resnet20-cifar10": resnet20,
}
