"""The typed graph: values and nodes in a bipartite networkx MultiDiGraph, with guarded mutation.

An edge `value -> node` has the operand index as key, `node -> value` the result index, so `Mul(x, x)` keeps both
operands. Every vertex carries one frozen payload (`compiler.ir.payload`), so copies are cheap. Parameters are
values with data and without producer. Which tasks need a vertex is derived by `needed_by`, never stored.

This is the only module that imports networkx.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from compiler.errors import VerifyError
from compiler.ir.payload import Attrs as Attrs
from compiler.ir.payload import Node as Node
from compiler.ir.payload import Operands as Operands
from compiler.ir.payload import Site as Site
from compiler.ir.payload import Value as Value
from compiler.ir.payload import checked_value
from compiler.ir.types import DType, Task, TaskSet, TensorType, ValueRef
from compiler.ir.types import NodeRef as NodeRef

if TYPE_CHECKING:
    from compiler.ir.op import Op

Ref = ValueRef | NodeRef


class Graph:
    """A multitask network. Read it freely; change it only through the verbs, which check before they touch.

    Reading: `inputs`, `tasks`, `outputs`, `nodes()`, `values()`, `operands()`, `results()`, `producer()`, `uses()`,
    `needed_by()`. Writing: `add_input`, `add_value`, `add_node`, `remove`, `replace_uses`, `update`, `set_task`,
    `drop_task`. A frozen graph refuses every verb; `copy()` gives a mutable one.
    """

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self._g: Any = nx.MultiDiGraph()
        self._inputs: tuple[ValueRef, ...] = ()
        self._tasks: dict[str, Task] = {}
        self._frozen = False
        self._order: tuple[NodeRef, ...] | None = None
        self._sites: dict[NodeRef, Site] = {}
        self._masks: dict[Ref, int] | None = None

    # ------------------------------------------------------------------ reading
    @property
    def frozen(self) -> bool:
        return self._frozen

    @property
    def inputs(self) -> tuple[Value, ...]:
        return tuple(self.value(r) for r in self._inputs)

    @property
    def tasks(self) -> Mapping[str, Task]:
        return MappingProxyType(self._tasks)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Every task's outputs, task by task; of a portfolio those of level 0."""
        return tuple(self.value(r) for t in self._tasks.values() for r in t.outputs)

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._g

    def value(self, ref: ValueRef) -> Value:
        """The value called `ref`."""
        return self._payload(ref)  # type: ignore[no-any-return]

    def node(self, ref: NodeRef) -> Node:
        """The node called `ref`."""
        return self._payload(ref)  # type: ignore[no-any-return]

    def nodes(self) -> tuple[Node, ...]:
        """All nodes in topological order, ties broken by name. VerifyError on a cycle."""
        if self._order is None:
            self._order = self._topological()
        return tuple(self.node(r) for r in self._order)

    def values(self) -> tuple[Value, ...]:
        """All values, sorted by name."""
        return tuple(self.value(r) for r in sorted(r for r in self._g if isinstance(r, ValueRef)))

    def parameters(self) -> tuple[Value, ...]:
        """Values with constant data, sorted by name."""
        return tuple(v for v in self.values() if v.data is not None)

    def operands(self, node: Node) -> Operands:
        """The operands of `node` by formal position."""
        found = {k: self.value(u) for u, k in self._into(node.ref)}
        count = max([*found, *node.absent], default=-1) + 1
        return Operands([found.get(i) for i in range(count)])

    def results(self, node: Node) -> tuple[Value, ...]:
        """The results of `node` by position."""
        found = {k: self.value(v) for v, k in self._out_of(node.ref)}
        return tuple(found[k] for k in sorted(found))

    def site(self, node: Node) -> Site:
        """The node with its operands and results."""
        site = self._sites.get(node.ref)
        if site is None or site.node is not node:
            site = self._sites[node.ref] = Site(node, self.operands(node), self.results(node))
        return site

    def sites(self) -> Iterator[Site]:
        """Every node in topological order with its operands and results."""
        return (self.site(n) for n in self.nodes())

    def producer(self, ref: ValueRef) -> Node | None:
        """The node that makes the value; None for inputs and parameters."""
        made = list(self._g.predecessors(ref))
        return self.node(made[0]) if made else None

    def edge_indices(self, ref: NodeRef) -> tuple[list[int], list[int]]:
        """Operand and result indices in use at a node, sorted: what the verifier checks."""
        return sorted(k for _, k in self._into(ref)), sorted(k for _, k in self._out_of(ref))

    def makers(self, ref: ValueRef) -> int:
        """How many edges lead into a value; more than one is an error."""
        return int(self._g.in_degree(ref))

    def uses(self, ref: ValueRef) -> tuple[tuple[Node, int], ...]:
        """(node, operand index) of every reader, sorted."""
        return tuple((self.node(n), k) for n, k in sorted(self._out_of(ref)))

    def is_output(self, ref: ValueRef) -> bool:
        """Whether some task returns this value, at any level."""
        return any(ref in t.returned for t in self._tasks.values())

    def needed_masks(self) -> dict[Ref, int]:
        """Bit mask of the tasks that need each vertex (bit i = i-th task), at any level; vertices nobody needs are
        left out.
        """
        if self._masks is None:
            self._masks = self._needed()
        return dict(self._masks)

    def needed_by(self) -> dict[Ref, TaskSet]:
        """The tasks that need each vertex, as sets of names."""
        names = tuple(self._tasks)
        sets: dict[int, TaskSet] = {}

        def expand(mask: int) -> TaskSet:
            if mask not in sets:
                sets[mask] = frozenset(n for i, n in enumerate(names) if mask >> i & 1)
            return sets[mask]

        return {ref: expand(mask) for ref, mask in self.needed_masks().items()}

    def fresh(self, name: str) -> str:
        """`name`, or `name.N` with the smallest N that neither a value nor a node uses."""
        candidate, n = name, 0
        while ValueRef(candidate) in self._g or NodeRef(candidate) in self._g:
            n += 1
            candidate = f"{name}.{n}"
        return candidate

    # ------------------------------------------------------------------ writing
    def freeze(self) -> Graph:
        """Refuse every further change; returns the graph itself."""
        self._frozen = True
        return self

    def copy(self) -> Graph:
        """A mutable copy that shares the payloads."""
        twin = Graph(self.name)
        twin._inputs, twin._tasks, twin._order = self._inputs, dict(self._tasks), self._order
        twin._sites, twin._masks = self._sites, self._masks
        vertices, into, out_of = twin._g._node, twin._g._pred, twin._g._succ
        for ref, attributes in self._g._node.items():
            vertices[ref], into[ref], out_of[ref] = attributes.copy(), {}, {}
        for ref, edges in self._g._succ.items():
            for other, keys in edges.items():
                out_of[ref][other] = into[other][ref] = {key: {} for key in keys}
        return twin

    def assign(self, other: Graph) -> None:
        """Become a copy of `other`: its vertices, inputs and tasks; the name stays."""
        self._writable()
        twin = other.copy()
        self._g, self._inputs, self._tasks, self._order = twin._g, twin._inputs, twin._tasks, twin._order
        self._sites, self._masks = twin._sites, twin._masks

    def add_input(self, name: str, type_: TensorType) -> Value:
        """Add a graph input."""
        value = self.add_value(name, type_)
        self._inputs = (*self._inputs, value.ref)
        return value

    def add_value(
        self,
        name: str,
        type_: TensorType,
        data: np.ndarray | None = None,
        sparser: Sequence[np.ndarray] = (),
        order: Sequence[np.ndarray] = (),
    ) -> Value:
        """Add a parameter (with data) or a value that a later `add_node` produces (without)."""
        ref = ValueRef(name)
        self._writable()
        if ref in self._g:
            raise VerifyError(f"value '{name}' exists already")
        value = checked_value(ref, type_, data, sparser, order)
        self._g.add_node(ref, payload=value)
        return value

    def add_parameter(self, name: str, data: np.ndarray) -> Value:
        """Add a constant; the type is the array's."""
        array = np.asarray(data)
        return self.add_value(name, TensorType(DType(array.dtype.name), tuple(array.shape)), array)

    def add_node(
        self,
        name: str,
        op: Op,
        attrs: Attrs,
        operands: Sequence[ValueRef | None],
        results: Sequence[ValueRef],
        origin: tuple[str, ...] = (),
    ) -> Node:
        """Add an application of `op`. Operands must exist; results must exist and have no producer yet."""
        ref = NodeRef(name)
        self._writable()
        if ref in self._g:
            raise VerifyError(f"node '{name}' exists already")
        while operands and operands[-1] is None:
            operands = operands[:-1]
        for value in [*(o for o in operands if o is not None), *results]:
            if value not in self._g:
                raise VerifyError(f"{op.name} '{name}': value '{value}' does not exist")
        for result in results:
            if self.producer(result) or result in self._inputs or self.value(result).data is not None:
                raise VerifyError(f"{op.name} '{name}': value '{result}' has a producer or data already")
        absent = tuple(i for i, o in enumerate(operands) if o is None)
        node = Node(ref, op, MappingProxyType(dict(sorted(attrs.items()))), absent, origin)
        self._g.add_node(ref, payload=node)
        for i, operand in enumerate(operands):
            if operand is not None:
                self._g.add_edge(operand, ref, key=i)
        for i, result in enumerate(results):
            self._g.add_edge(ref, result, key=i)
        self._order = None
        return node

    def remove(self, ref: Ref) -> None:
        """Remove a node with its results, or a value without producer; refuses whatever is still used."""
        self._writable()
        gone: list[Ref] = [ref]
        if isinstance(ref, NodeRef):
            gone += [v.ref for v in self.results(self.node(ref))]
        elif self.producer(ref):
            raise VerifyError(f"value '{ref}' has a producer; remove the node instead")
        for value in gone:
            if isinstance(value, ValueRef) and (self.uses(value) or self.is_output(value)):
                raise VerifyError(f"value '{value}' is still used")
        self._g.remove_nodes_from(gone)
        self._inputs = tuple(i for i in self._inputs if i not in gone)
        self._order = None

    def replace_uses(self, old: ValueRef, new: ValueRef) -> None:
        """Let every reader and task output of `old` read `new`; refuses a type change."""
        self._writable()
        before, after = self.value(old), self.value(new)
        if before.type != after.type:
            raise VerifyError(f"cannot replace '{old}' ({before.type}) by '{new}' ({after.type}): types differ")
        for node, index in self.uses(old):
            self._g.remove_edge(old, node.ref, key=index)
            self._g.add_edge(new, node.ref, key=index)
        for task in tuple(self._tasks.values()):
            outputs, *variants = (tuple(new if r == old else r for r in level) for level in task.ladder)
            self._tasks[task.name] = replace(task, outputs=outputs, variants=tuple(variants))
        self._order = None

    def set_operand(self, node: NodeRef, index: int, new: ValueRef) -> None:
        """Let operand `index` of one node read `new`; the caller re-infers types where they change.

        An operand that was left out (a bias) is added.
        """
        self._writable()
        self.value(new)
        payload, count = self.node(node), len(self.operands(self.node(node)))
        old = [u for u, k in self._into(node) if k == index]
        if old:
            self._g.remove_edge(old[0], node, key=index)
        elif index in payload.absent or index == count:
            absent = tuple(i for i in payload.absent if i != index)
            self._g.nodes[node]["payload"] = replace(payload, absent=absent)
        else:
            raise VerifyError(f"node '{node}' has no operand {index}")
        self._g.add_edge(new, node, key=index)
        self._order = None

    def update(
        self,
        ref: Ref,
        *,
        type: TensorType | None = None,
        data: np.ndarray | None = None,
        attrs: Attrs | None = None,
        sparser: Sequence[np.ndarray] | None = None,
        order: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Replace the payload of a vertex: a value's type, data and levels, or a node's attributes.

        New data without a type keep the parameter's encoding where they fit it, else it changes by the rule of
        `Encoding.adapted`. VerifyError where a parameter with levels gets data and no levels (`()` gives them up).
        `Value.order` belongs to the bits of its level: with new ones it goes, unless it is given too.
        """
        self._writable()
        if isinstance(ref, NodeRef):
            if type is not None or data is not None or attrs is None:
                raise VerifyError(f"node '{ref}': only attributes can be updated")
            frozen = MappingProxyType(dict(sorted(attrs.items())))
            self._g.nodes[ref]["payload"] = replace(self.node(ref), attrs=frozen)
            return
        value = self.value(ref)
        if attrs is not None or (data is not None and value.data is None):
            raise VerifyError(f"value '{ref}': only the type, and a parameter's data, can be updated")
        if sparser is None and data is not None and value.sparser:
            raise VerifyError(f"value '{ref}': has {len(value.sparser)} sparser levels; new data would lose them")
        new_type = type or value.type
        new_data = data if data is not None else value.data
        if type is None and data is not None and value.data is not None and data.shape == value.shape:
            new_type = replace(value.type, encoding=value.type.encoding.adapted(value.data, data))
        levels = value.sparser if sparser is None else sparser
        if order is None:
            order = value.order if data is None and sparser is None and new_type == value.type else ()
        self._g.nodes[ref]["payload"] = checked_value(ref, new_type, new_data, levels, order)

    def set_task(
        self,
        name: str,
        outputs: Sequence[ValueRef],
        labels: Sequence[str] | None = None,
        variants: Sequence[Sequence[ValueRef]] = (),
    ) -> Task:
        """Declare (or replace) a task and its outputs, at further levels too where it is one of a portfolio."""
        self._writable()
        if not outputs:
            raise VerifyError(f"task '{name}' has no outputs")
        task = Task(name, tuple(outputs), tuple(labels or (r.name for r in outputs)), tuple(map(tuple, variants)))
        for ref in task.returned:
            self.value(ref)
        self._tasks[name] = task
        return task

    def drop_task(self, name: str) -> None:
        """Forget a task; what only it needed becomes dead."""
        self._writable()
        del self._tasks[name]

    # ------------------------------------------------------------------ private
    # Graphs are read much more often than written. networkx's views make several objects for every edge they give,
    # so that most of the time of a pass went there; its dictionaries are read, and copied, instead.
    def _into(self, ref: Ref) -> list[tuple[Any, int]]:
        """(vertex, index) of every edge that leads to `ref`, which has to be there."""
        return [(u, k) for u, keys in self._g._pred[ref].items() for k in keys]

    def _out_of(self, ref: Ref) -> list[tuple[Any, int]]:
        """(vertex, index) of every edge that leaves `ref`, which has to be there."""
        return [(v, k) for v, keys in self._g._succ[ref].items() for k in keys]

    def _payload(self, ref: Ref) -> Any:
        try:
            return self._g._node[ref]["payload"]
        except KeyError:
            raise VerifyError(f"'{ref}' is not in graph '{self.name}'") from None

    def _writable(self) -> None:
        """Refuse where frozen; else forget what was derived, for this graph alone: copies share it until then.

        Verbs read `operands` and `results`, never `site` or `needed_masks`, which would keep what is about to
        change.
        """
        if self._frozen:
            raise VerifyError(f"graph '{self.name}' is frozen; work on a copy()")
        self._sites, self._masks = {}, None

    def _needed(self) -> dict[Ref, int]:
        masks: dict[Ref, int] = {}
        for bit, task in enumerate(self._tasks.values()):
            for ref in task.returned:
                masks[ref] = masks.get(ref, 0) | 1 << bit
        for node in reversed(self.nodes()):
            mask = 0
            for result, _ in self._out_of(node.ref):
                mask |= masks.get(result, 0)
            if mask:
                masks[node.ref] = mask
                for operand, _ in self._into(node.ref):
                    masks[operand] = masks.get(operand, 0) | mask
        return masks

    def _topological(self) -> tuple[NodeRef, ...]:
        waiting: dict[NodeRef, int] = {}
        ready: list[NodeRef] = []
        for ref in self._g:
            if isinstance(ref, NodeRef):
                count = sum(1 for u, _ in self._into(ref) if self._g.in_degree(u))
                waiting[ref] = count
                if not count:
                    ready.append(ref)
        heapq.heapify(ready)
        order: list[NodeRef] = []
        while ready:
            ref = heapq.heappop(ready)
            order.append(ref)
            for value, _ in self._out_of(ref):
                for reader, _ in self._out_of(value):
                    waiting[reader] -= 1
                    if not waiting[reader]:
                        heapq.heappush(ready, reader)
        if len(order) != len(waiting):
            stuck = sorted(set(waiting) - set(order))
            raise VerifyError(f"graph '{self.name}' has a cycle through node '{stuck[0]}'")
        return tuple(order)
