"""What every dense convolution strategy shares: planes, shapes, constants, predicted cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.codegen.epilogues import number
from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Slot, plane, two, value_slot
from compiler.codegen.layout import Blocked, Border
from compiler.codegen.strategies.base import Situation
from compiler.codegen.target import Target
from compiler.codegen.templates.activation import RESIDUAL, SUM, Activation, Number, Source, Step, Taken
from compiler.codegen.templates.blocked import Epilogue, Plane, pack_bias
from compiler.ir.graph import Site, Value
from compiler.ir.types import ValueRef

MOST_ERROR = 2e-5
"""Largest error of a layer by an algorithm of fewer products, relative to its results: a network adds up the errors
of its layers (docs/decisions/0008)."""

HIDDEN_LOAD = 0.05
"""Cycles of a load that multiply-adds hide (ARM)."""


@dataclass(frozen=True, slots=True)
class ConvFacts:
    """Logical facts of a convolution site with one or two spatial axes, as two."""

    batch: int
    inputs: int
    outputs: int
    extent: tuple[int, int]
    """Rows and columns of the result."""
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]
    """Before the first row and column."""

    @property
    def pointwise(self) -> bool:
        """Whether each output cell reads the one input cell at its place."""
        return self.kernel == self.stride == (1, 1) and self.pad == (0, 0)

    @property
    def taps(self) -> int:
        """Products per output element."""
        return self.inputs * self.kernel[0] * self.kernel[1]

    @property
    def signature(self) -> str:
        """Name of the shape in a tuning database."""
        x = "x".join
        return (
            f"{self.batch}x{self.inputs}-{self.outputs}@{x(map(str, self.extent))}"
            f"-k{x(map(str, self.kernel))}-s{x(map(str, self.stride))}-d{x(map(str, self.dilation))}"
            f"-p{x(map(str, self.pad))}"
        )


def facts(site: Site) -> ConvFacts:
    """The facts of a Conv site."""
    x, y = site.operands[0], site.results[0]
    return ConvFacts(
        batch=x.shape[0],
        inputs=x.shape[1],
        outputs=y.shape[1],
        extent=two((1, *y.shape[2:]), 1),
        kernel=two(site.ints("kernel_shape"), 1),
        stride=two(site.ints("strides"), 1),
        dilation=two(site.ints("dilations"), 1),
        pad=two(site.ints("pads")[: x.rank - 2], 0),
    )


def blocked_plane(builder: Builder, value: Value) -> Plane:
    """The buffer of a value that is stored blocked."""
    layout = builder.layout(value.ref)
    assert isinstance(layout, Blocked), value.ref
    return plane(value, layout)


def epilogue(builder: Builder, group: Group) -> Epilogue:
    """Residual and activation of a group."""
    residual = None if group.residual is None else blocked_plane(builder, group.residual)
    return Epilogue(residual, activation_of(group))


def activation_of(group: Group) -> Activation:
    """The nodes after the anchor as steps on the sum; a bias is added before them."""
    known: dict[ValueRef, Source] = {group.anchor.results[0].ref: SUM}
    if group.residual is not None:
        known[group.residual.ref] = RESIDUAL
    steps: list[Step] = []
    for place, site in enumerate(group.after):
        if group.bias is not None and place == 0:
            known[site.results[0].ref] = SUM
            continue
        operands = [site.operands.optional(i) for i in range(len(site.operands))]
        sources = tuple(None if v is None else known.get(v.ref) or Number(number(v)) for v in operands)
        steps.append(Step(site.node.op.name, tuple(sorted(site.attrs.items())), sources, site))
        known[site.results[0].ref] = Taken(len(steps))
    return Activation(tuple(steps))


def padding_borders(group: Group) -> dict[ValueRef, Border]:
    """Zero borders as the padding asks for them; a residual operand needs none."""
    site = group.anchor
    pads, axes = site.ints("pads"), site.operands[0].rank - 2
    border = Border(tuple(pads[:axes]), tuple(pads[axes:]))
    return residual_border(group) | {v.ref: border for v in group.segments}


def residual_border(group: Group) -> dict[ValueRef, Border]:
    """A residual operand is read blocked, without a border."""
    if group.residual is None:
        return {}
    axes = group.residual.rank - 2
    return {group.residual.ref: Border((0,) * axes, (0,) * axes)}


def weight4(site: Site) -> np.ndarray:
    """The weights as [O, I, K, L]."""
    weight = site.operands[1].constant
    return weight if weight.ndim == 4 else weight[:, :, None, :]


def epilogue_slots(group: Group) -> list[Slot]:
    """Arguments behind weights and bias."""
    residual = [] if group.residual is None else [value_slot(group.residual)]
    return [*residual, value_slot(group.outputs[0])]


def conv_slots(builder: Builder, group: Group, form: str, packed: np.ndarray, lanes: int) -> tuple[Slot, ...]:
    """Arguments of a dense kernel: segments of the input, weights packed in that form, the bias filled up to a
    multiple of `lanes`, and those of the epilogue."""
    return (
        *(value_slot(v) for v in group.segments),
        builder.constant(group.anchor.operands[1], packed, form),
        bias_slot(builder, group.anchor, lanes),
        *epilogue_slots(group),
    )


def bias_slot(builder: Builder, site: Site, lanes: int) -> Slot:
    """The bias of a convolution, or zeros, filled up to a multiple of `lanes`."""
    weight, bias = site.operands[1], site.operands.optional(2)
    packed = pack_bias(None if bias is None else bias.constant, site.results[0].shape[1], lanes)
    return builder.constant(bias or weight, packed, "bias")


def output_block(site: Site, situation: Situation) -> int:
    """Lanes per block of the result."""
    return situation.block(site.results[0].shape[1])


def divides_image(group: Group) -> bool:
    """Whether threads divide the image and each reads all weights, or divide the weights and each reads all of the
    input: every thread reads the smaller of the two."""
    return group.anchor.operands[1].size < sum(v.size for v in group.segments)


def input_loads(target: Target) -> float:
    """What reading an input value costs in loads of full vectors: a broadcast, on 64-bit ARM part of a vector."""
    return 1 / target.machine.narrow / target.input_lanes


def hidden_loads(target: Target, rows: int, vectors: int) -> float:
    """Cycles that loads of a step of rows x vectors products cost although multiply-adds hide them (ARM): on 64-bit
    ARM loads of two vectors of weights, or of a row's inputs for several steps and their address."""
    if target.arch == "x86_64":
        return 0.0
    together = 2 if target.input_lanes > 1 else 1
    return HIDDEN_LOAD * (rows / target.input_lanes + vectors / together)


def weight_seconds(bytes_: int, situation: Situation) -> float:
    """Time to read packed weights: from the last cache, or from memory where all weights of the network pass it."""
    machine = situation.target.machine
    fits = max(situation.weight_bytes, bytes_) <= machine.last_level_cache // 2
    return bytes_ / (machine.cache_bandwidth if fits else machine.bandwidth)
