"""Integer index arithmetic with known ranges: what the generic route decides at compile time.

Operators write what they compute over indices. Here an index is a linear combination of loop variables and of
quotients and remainders by constants, with the interval of its values. Comparisons that hold or fail on the whole
interval become Python truth values, so that a condition vanishes wherever a loop's range settles it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tvm import tirx
from tvm_ffi import ObjectConvertible


class LoopVar:
    """A loop variable from `low` to `high` (both included); `expr` is how code mentions it."""

    __slots__ = ("expr", "high", "low", "name")

    def __init__(self, name: str, low: int, high: int, expr: Any = None) -> None:
        self.name, self.low, self.high = name, low, high
        self.expr = tirx.Var(name, "int32") if expr is None else expr

    @property
    def extent(self) -> int:
        return self.high - self.low + 1

    def __repr__(self) -> str:
        return f"{self.name}[{self.low}..{self.high}]"


class Part:
    """floor(of / by), or of modulo by, where the intervals do not settle it; `by` > 1."""

    __slots__ = ("by", "high", "key", "low", "of", "remainder")

    def __init__(self, of: Index, by: int, remainder: bool) -> None:
        self.of, self.by, self.remainder = of, by, remainder
        self.key = (of.key, by, remainder)
        low, high = of.interval
        self.low, self.high = (0, by - 1) if remainder else (low // by, high // by)

    @property
    def expr(self) -> Any:
        """The TVM expression."""
        function = tirx.floormod if self.remainder else tirx.floordiv
        return function(self.of.asobject(), self.by)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


Atom = LoopVar | Part


class Index(ObjectConvertible):  # type: ignore[misc]
    """const + sum of coefficient * atom, immutable. TVM functions accept it as the expression it stands for."""

    __slots__ = ("_interval", "_key", "const", "terms")

    def __init__(self, terms: Mapping[Atom, int], const: int = 0) -> None:
        self.terms, self.const = terms, const
        self._interval: tuple[int, int] | None = None
        self._key: Any = None

    @classmethod
    def of(cls, value: int | LoopVar | Index) -> Index:
        """The index of a number or a variable; a variable with one value is that number."""
        if isinstance(value, Index):
            return value
        if isinstance(value, LoopVar):
            return cls({}, value.low) if value.low == value.high else cls({value: 1})
        return cls({}, value)

    @property
    def key(self) -> Any:
        """Equal for equal indices."""
        if self._key is None:
            self._key = (frozenset(self.terms.items()), self.const)
        return self._key

    @property
    def interval(self) -> tuple[int, int]:
        """Smallest and largest value."""
        if self._interval is None:
            low = high = self.const
            for atom, factor in self.terms.items():
                ends = factor * atom.low, factor * atom.high
                low, high = low + min(ends), high + max(ends)
            self._interval = low, high
        return self._interval

    def variables(self) -> set[LoopVar]:
        """Every loop variable inside, parts included."""
        found: set[LoopVar] = set()
        for atom in self.terms:
            found |= {atom} if isinstance(atom, LoopVar) else atom.of.variables()
        return found

    def parts(self) -> Iterator[Part]:
        """Every quotient and remainder, the outer ones first."""
        for atom in self.terms:
            if isinstance(atom, Part):
                yield atom
                yield from atom.of.parts()

    def step(self, variable: LoopVar) -> int | None:
        """By how much the value grows with the variable; None where that is not one number."""
        if any(isinstance(a, Part) and variable in a.of.variables() for a in self.terms):
            return None
        return self.terms.get(variable, 0)

    def without(self, variable: LoopVar) -> Index:
        """The rest beside a variable that is no part's."""
        return Index({a: f for a, f in self.terms.items() if a is not variable}, self.const)

    def asobject(self) -> Any:
        """The TVM expression."""
        total: Any = None
        for atom, factor in self.terms.items():
            term = atom.expr if factor == 1 else atom.expr * factor
            total = term if total is None else total + term
        if total is None:
            return tirx.IntImm("int32", self.const)
        return total + self.const if self.const else total

    def __repr__(self) -> str:
        return f"Index({self.asobject()})"

    # ------------------------------------------------------------------ arithmetic
    def __add__(self, other: Any) -> Any:
        known = index_or_none(other)
        return self.asobject() + other if known is None else _sum(self, known, 1)

    def __radd__(self, other: Any) -> Any:
        known = index_or_none(other)
        return other + self.asobject() if known is None else _sum(known, self, 1)

    def __sub__(self, other: Any) -> Any:
        known = index_or_none(other)
        return self.asobject() - other if known is None else _sum(self, known, -1)

    def __rsub__(self, other: Any) -> Any:
        known = index_or_none(other)
        return other - self.asobject() if known is None else _sum(known, self, -1)

    def __neg__(self) -> Index:
        return self._scaled(-1)

    def __mul__(self, other: Any) -> Any:
        known = index_or_none(other)
        if known is not None and not known.terms:
            return self._scaled(known.const)
        if known is not None and not self.terms:
            return known._scaled(self.const)
        return self.asobject() * (other if known is None else known.asobject())

    def __rmul__(self, other: Any) -> Any:
        known = index_or_none(other)
        return other * self.asobject() if known is None else known * self

    def _scaled(self, by: int) -> Index:
        return Index({a: f * by for a, f in self.terms.items()}, self.const * by) if by else Index({})

    def __floordiv__(self, other: Any) -> Any:
        by = _number(other)
        return tirx.floordiv(self.asobject(), other) if by is None else _quotient(self, by)

    def __rfloordiv__(self, other: Any) -> Any:
        return tirx.floordiv(other, self.asobject())

    def __mod__(self, other: Any) -> Any:
        by = _number(other)
        return tirx.floormod(self.asobject(), other) if by is None else _remainder(self, by)

    def __rmod__(self, other: Any) -> Any:
        return tirx.floormod(other, self.asobject())

    # ------------------------------------------------------------------ comparison
    def __lt__(self, other: Any) -> Any:
        known = index_or_none(other)
        return self.asobject() < other if known is None else at_most_zero(self - known + 1)

    def __le__(self, other: Any) -> Any:
        known = index_or_none(other)
        return self.asobject() <= other if known is None else at_most_zero(self - known)

    def __gt__(self, other: Any) -> Any:
        known = index_or_none(other)
        return self.asobject() > other if known is None else at_most_zero(known - self + 1)

    def __ge__(self, other: Any) -> Any:
        known = index_or_none(other)
        return self.asobject() >= other if known is None else at_most_zero(known - self)

    def __eq__(self, other: Any) -> Any:
        known = index_or_none(other)
        return tirx.EQ(self._beside(other), other) if known is None else is_zero(self - known)

    def __ne__(self, other: Any) -> Any:
        known = index_or_none(other)
        return tirx.NE(self._beside(other), other) if known is None else negated(is_zero(self - known))

    def _beside(self, other: Any) -> Any:
        """The TVM expression in the type of `other`: EQ and NE convert nothing."""
        kind = str(other.ty.dtype)
        return self.asobject() if kind == "int32" else tirx.Cast(kind, self.asobject())

    __hash__ = None  # type: ignore[assignment]


def index_or_none(value: Any) -> Index | None:
    """`value` as an index where it is one: a number, a literal, an index."""
    if isinstance(value, Index):
        return value
    if isinstance(value, int):
        return Index({}, int(value))
    if isinstance(value, tirx.IntImm) and str(value.ty.dtype) != "bool":
        return Index({}, int(value.value))
    return None


def _number(value: Any) -> int | None:
    known = index_or_none(value)
    return known.const if known is not None and not known.terms and known.const > 0 else None


def _sum(a: Index, b: Index, sign: int) -> Index:
    terms = dict(a.terms)
    for atom, factor in b.terms.items():
        total = terms.get(atom, 0) + sign * factor
        if total:
            terms[atom] = total
        else:
            terms.pop(atom, None)
    return _rejoined(Index(terms, a.const + sign * b.const))


def _rejoined(index: Index) -> Index:
    """c * b * (x // b) + c * (x % b) is c * x."""
    for atom, factor in index.terms.items():
        if not isinstance(atom, Part) or not atom.remainder:
            continue
        quotient = _quotient(atom.of, atom.by)
        if len(quotient.terms) != 1 or quotient.const:
            continue
        ((whole, one),) = quotient.terms.items()
        if one == 1 and index.terms.get(whole) == factor * atom.by:
            rest = Index({a: f for a, f in index.terms.items() if a not in (atom, whole)}, index.const)
            return _sum(rest, atom.of * factor, 1)
    return index


def _split_off(index: Index, by: int) -> tuple[Index, Index]:
    """(whole, rest) with index = by * whole + rest; the constant of the rest is in 0..by-1."""
    whole = {a: f // by for a, f in index.terms.items() if f % by == 0}
    rest = {a: f for a, f in index.terms.items() if f % by}
    return Index(whole, index.const // by), Index(rest, index.const % by)


def _quotient(index: Index, by: int) -> Index:
    if by == 1:
        return index
    whole, rest = _split_off(index, by)
    low, high = rest.interval
    if low // by == high // by:
        return _sum(whole, Index({}, low // by), 1)
    fine = _fine_part(rest, by)
    if fine is not None:  # floor((g r + s) / (g b)) = floor(r / b) for s from 0 to g - 1
        unit, coarse, _ = fine
        return _sum(whole, _quotient(coarse, by // unit), 1)
    if len(rest.terms) == 1 and not rest.const:
        ((atom, factor),) = rest.terms.items()
        if isinstance(atom, Part) and not atom.remainder and factor == 1:
            return _sum(whole, _quotient(atom.of, atom.by * by), 1)
    return _sum(whole, Index({Part(rest, by, False): 1}), 1)


def _remainder(index: Index, by: int) -> Index:
    if by == 1:
        return Index({})
    _, rest = _split_off(index, by)
    low, high = rest.interval
    if low // by == high // by:
        return _sum(rest, Index({}, by * (low // by)), -1)
    fine = _fine_part(rest, by)
    if fine is not None:
        unit, coarse, small = fine
        return _sum(_remainder(coarse, by // unit) * unit, small, 1)
    return Index({Part(rest, by, True): 1})


def _fine_part(index: Index, by: int) -> tuple[int, Index, Index] | None:
    """(unit, coarse, small) with index = unit * coarse + small, small in 0..unit-1, and unit a divisor of `by`."""
    for unit in sorted({math.gcd(by, f) for f in index.terms.values()} - {1}, reverse=True):
        coarse = {a: f // unit for a, f in index.terms.items() if f % unit == 0}
        small = Index({a: f for a, f in index.terms.items() if f % unit}, index.const % unit)
        low, high = small.interval
        if low >= 0 and high < unit:
            return unit, Index(coarse, index.const // unit), small
    return None


# ---------------------------------------------------------------------- conditions
class Condition(ObjectConvertible):  # type: ignore[misc]
    """A comparison the intervals do not settle: `index` <= 0, or `index` == 0 where `equal`."""

    __slots__ = ("equal", "index")

    def __init__(self, index: Index, equal: bool) -> None:
        self.index, self.equal = index, equal

    @property
    def key(self) -> Any:
        """Equal for equal conditions."""
        return self.index.key, self.equal

    def atoms(self) -> Iterator[Condition]:
        """The comparisons inside."""
        yield self

    def asobject(self) -> Any:
        """The TVM expression."""
        left, zero = self.index.asobject(), tirx.IntImm("int32", 0)
        return tirx.EQ(left, zero) if self.equal else tirx.LE(left, zero)

    def __and__(self, other: Any) -> Any:
        return both(self, other)

    __rand__ = __and__


class Compound(ObjectConvertible):  # type: ignore[misc]
    """`and`, `or` or `not` of undecided conditions (of this module or of TVM)."""

    __slots__ = ("kind", "of")

    def __init__(self, kind: str, *of: Any) -> None:
        self.kind, self.of = kind, of

    @property
    def key(self) -> Any:
        """Equal for equal conditions."""
        return self.kind, tuple(getattr(c, "key", id(c)) for c in self.of)

    def atoms(self) -> Iterator[Condition]:
        """The comparisons inside."""
        for condition in self.of:
            if isinstance(condition, Condition | Compound):
                yield from condition.atoms()

    def asobject(self) -> Any:
        """The TVM expression."""
        parts = [c.asobject() if hasattr(c, "asobject") else c for c in self.of]
        return {"and": tirx.And, "or": tirx.Or, "not": tirx.Not}[self.kind](*parts)

    def __and__(self, other: Any) -> Any:
        return both(self, other)

    __rand__ = __and__


def at_most_zero(index: Index) -> bool | Condition:
    """index <= 0."""
    low, high = index.interval
    if high <= 0:
        return True
    return False if low > 0 else Condition(index, False)


def is_zero(index: Index) -> bool | Condition:
    """index == 0."""
    low, high = index.interval
    if low == high == 0:
        return True
    if low > 0 or high < 0 or (index.terms and index.const % math.gcd(*index.terms.values())):
        return False
    return Condition(index, True)


def known_truth(condition: Any) -> bool | None:
    """The truth value of a settled condition, else None."""
    if isinstance(condition, bool):
        return condition
    if isinstance(condition, tirx.IntImm):
        return bool(int(condition.value))
    return None


def both(a: Any, b: Any) -> Any:
    """a and b."""
    for one, other in ((a, b), (b, a)):
        truth = known_truth(one)
        if truth is not None:
            return other if truth else False
    return Compound("and", a, b)


def either(a: Any, b: Any) -> Any:
    """a or b."""
    for one, other in ((a, b), (b, a)):
        truth = known_truth(one)
        if truth is not None:
            return True if truth else other
    return Compound("or", a, b)


def negated(a: Any) -> Any:
    """not a."""
    truth = known_truth(a)
    return Compound("not", a) if truth is None else not truth
