"""What a merge did, layer by layer: what is shared by which tasks, and why the rest is not."""

from __future__ import annotations

from collections.abc import Mapping

from compiler.ir.graph import NodeRef
from compiler.ir.ops.recurrent import Recurrent
from compiler.passes.base import Note, Refusal
from compiler.passes.merge.assemble import Assembly
from compiler.passes.merge.channels import MAKERS, made_axis, recurrent_problem
from compiler.passes.merge.labels import label_order
from compiler.passes.merge.stages import label, lacking
from compiler.passes.merge.streams import Place, Source, Stream, Streams
from compiler.passes.merge.trunks import Trunks


def facts(
    streams: Streams, assembly: Assembly | None, trunks: Trunks | None, losses: Mapping[str, float] | None = None
) -> list[Refusal]:
    """Notes for layers that are shared and for every task's loss, refusals for layers that are not.

    `trunks`: blocks that are shared whole have been told about already, and what they lose counts.
    """
    told: list[Refusal] = []
    whole = set[NodeRef]() if trunks is None else trunks.shared()
    for place in streams.places:
        if place.sources[0].ref in whole:
            continue
        if place.role in MAKERS and any(s.groups for s in place.sources):
            told += _layer(streams, assembly, place)
        elif made_axis(place.sources[0].site) is not None:
            told += _whole(streams, place)
    labelled = assembly is not None and assembly.labelling
    if labelled or (trunks is not None and trunks.attached):
        for task, loss in (losses or (trunks.losses() if trunks is not None else {})).items():
            told.append(Note(f"task '{task}'", f"loses {loss:.2%} of its outputs' variance on held-out inputs"))
    return told


def _layer(streams: Streams, assembly: Assembly | None, place: Place) -> list[Refusal]:
    where = f"{place.sources[0].site.node.op.name} '{place.sources[0].ref}'"
    labelled = {} if assembly is None else assembly.labelling
    written = {streams.of_group[g].index for s in place.sources for g in s.groups if g in streams.of_group}
    shared = [i for i in sorted(written & set(labelled)) if any(len(c.groups) > 1 for c in labelled[i])]
    if shared:
        return [Note(where, _shares(streams, assembly, place, index)) for index in shared]
    return [Refusal(where, _why(streams, place))]


def _whole(streams: Streams, place: Place) -> list[Refusal]:
    """Why a layer's results are read whole; nothing about layers that make a task's output."""
    site = place.sources[0].site
    axis = made_axis(site)
    assert axis is not None
    where = f"{site.node.op.name} '{site.node.ref}'"
    groups = [g for g in streams.channels.groups if axis in g.axes and not g.split]
    reason = groups[0].reason if groups else streams.channels.closure.why(axis, 0).partition(": ")[2]
    if not reason or reason.endswith(("is a task output", "has only one entry")):
        return []
    if not groups and isinstance(site.node.op, Recurrent):
        reason = recurrent_problem(site) or reason
    return [Refusal(where, f"not shared: its channels are read together, {reason}")]


def _shares(streams: Streams, assembly: Assembly | None, place: Place, index: int) -> str:
    """`12 channels for a and b, 4 for a`."""
    assert assembly is not None
    counts: dict[tuple[int, ...], int] = {}
    for channel in assembly.labelling[index]:
        counts[channel.groups] = counts.get(channel.groups, 0) + 1
    parts = []
    for groups in sorted(counts, key=lambda g: label_order(streams, g)):
        tasks = streams.alignment.names(place.mask_of(groups))
        if tasks:
            parts.append(f"{counts[groups]} for {_list(tasks)}")
    before = " + ".join(str(streams.group(g).width) for s in place.sources for g in s.groups)
    lost = [(mask, r) for (p, mask), r in assembly.findings.residuals.items() if p == place.index and r > 1e-6]
    words = [f"{_list(streams.alignment.names(m))} {r:.1%}" for m, r in sorted(lost, reverse=True)]
    residual = f"; its results lose {', '.join(words)}" if words else ""
    return f"channels {', '.join(parts)} (before {before}){residual}"


def _why(streams: Streams, place: Place) -> str:
    """Why nothing of a layer is shared."""
    reasons = [streams.group(g).reason for s in place.sources for g in s.groups if not streams.group(g).split]
    if reasons:
        return f"not shared: {reasons[0]}"
    if len(place.sources) > 1:
        mask = sum(s.mask for s in place.sources)
        tasks = streams.alignment.names(mask)
        private = [s for s in place.sources if _reads_its_own(streams, s, mask)]
        if len(private) >= len(place.sources) - 1:
            whose = "each of them" if len(private) > 1 else _list(streams.alignment.names(private[0].mask))
            return f"not shared by {_list(tasks)}: what {whose} reads there is its own, and read whole"
        written = [streams.of_group[g] for g in place.sources[0].groups if g in streams.of_group]
        found = (lacking(streams, label(streams, s, mask)) for s in written)
        layer = next(filter(None, found), None)
        more = f", or leave it without weights in '{layer.sources[0].ref}'" if layer is not None else ""
        more += next(filter(None, (_short(streams, stream, mask) for stream in written)), "")
        return f"not shared by {_list(tasks)}: sharing any of its channels would lose more than allowed{more}"
    mine = place.sources[0]
    apart = [a for a in streams.alignment.apart if a.node == mine.ref]
    if len(streams.alignment.names(mine.mask)) == len(streams.alignment.tasks):
        return "is common to all tasks already"
    if not apart:
        return "has corresponding layers that cannot stand for it: their maps or operands differ"
    return f"only in {_list(streams.alignment.names(mine.mask))}: " + "; ".join(a.reason for a in apart)


def _short(streams: Streams, stream: Stream, mask: int) -> str:
    """That some of the tasks `mask` lack a layer which writes to the stream, as an end of a sentence."""
    groups = label(streams, stream, mask)
    for place in stream.makers:
        having = place.mask_of(groups)
        if having and (missing := mask & ~having):
            names = streams.alignment.names(missing)
            return f", or need '{place.sources[0].ref}', which adds to the same channels, of {_list(names)} too"
    return ""


def _reads_its_own(streams: Streams, source: Source, mask: int) -> bool:
    """Whether a layer reads a value that is not for all tasks of `mask`, and that has no channels to share."""
    value = source.site.operands[0]
    return streams.alignment.masks[value.ref] & mask != mask and not streams.channels.parts(value)


def _list(names: tuple[str, ...]) -> str:
    return " and ".join(names)
