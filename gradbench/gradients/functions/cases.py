"""The sizes and inputs at which a function is judged: a bounded set that shows faults which one size and one input
hide.

With L letters, each with a small prime of its own as its base size:

- every kind of input at the base sizes; - each letter alone at 0, 1, 128 and 129; all letters at 2; and 127, 17 and 2
in rotation over the letters; random inputs: 4L + 4 shapes, 5L + 1 for more than three letters.

17 and 127 are primes, 129 is one more than a tile; sizes are not combined further. Values are judged everywhere, VJP at
the base, at each letter's 1 and 129 and at all 2, JVP at the base. A size outside a letter's own range is left out, and
for a letter with given sizes the smallest and the largest are added.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import PlanError, nearest
from gradbench.gradients.functions import arguments as spec
from gradbench.gradients.rounding.numbers.formats import format_of

BASES = (5, 3, 7, 11, 13)
ALONE = {0: (), 1: ("vjp",), 128: (), 129: ("vjp",)}  # sizes of one letter, and the derivatives judged there
ROUND = (127, 17, 2)
BOTH = ("vjp", "jvp")
SEEDS = 3
LARGE = 32.0
SEARCHED = range(1, 130)  # sizes of a letter that a search draws, where no others are allowed
_PRODUCT = 129**2  # at most, of the sizes of a searched case; above it sizes are halved, the largest first


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: its arguments and how they were made. `edge`: the reference may leave its dtype's range in between, and
    what it does then is right; `modes`: the derivatives judged."""

    sizes: Mapping[str, int]
    kind: str
    seed: int
    arguments: tuple[Any, ...]
    edge: bool
    modes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The case as `--case` takes it: sizes, the kind of input, the seed."""
        return ",".join([*(f"{letter}={size}" for letter, size in self.sizes.items()), self.kind, str(self.seed)])

    @property
    def total(self) -> int:
        """How many numbers the arguments have."""
        return sum(np.size(x) for x in jax.tree.leaves(self.arguments))

    @property
    def is_empty(self) -> bool:
        return any(np.size(x) == 0 for x in jax.tree.leaves(self.arguments))


def _float_kinds() -> dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]:
    """By kind of input, the change of a random float array; computed in float64."""

    def at_one(value: float) -> Callable:
        def put(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
            if x.size:
                x.reshape(-1)[generator.integers(x.size)] = value
            return x

        return put

    return {
        "zeros": lambda x, g: np.zeros_like(x),
        "ones": lambda x, g: np.ones_like(x),
        "equal": lambda x, g: np.full_like(x, x.flat[0] if x.size else 0.0),
        "ties": lambda x, g: np.round(x),
        "large": lambda x, g: LARGE * x,
        "inf": at_one(np.inf),
        "-inf": at_one(-np.inf),
        "nan": at_one(np.nan),
    }


FLOAT_KINDS = _float_kinds()
SCALED_KINDS = ("subnormal", "overflow")  # by the dtype's own range
KINDS = ("random", *FLOAT_KINDS, *SCALED_KINDS)
SMOOTH_KINDS = ("random", "zeros", "ones", "equal", "ties")
NOT_EDGES = ("random", "given")
ONE_BY_ONE = ("inf", "-inf", "nan")  # an entry of one argument after another


def altered(kind: str, arguments: tuple[Any, ...], generator: np.random.Generator) -> tuple[Any, ...]:
    """Arguments with their float arrays changed to a kind of input: all of them, or for `nan:1` only the second (a
    complex one counts as two). Indices become all the same where floats do."""
    kind, _, only = kind.partition(":")
    place = -1

    def one(leaf: Any) -> Any:
        if is_complex_array(leaf):
            return complex_of(*map(part, parts(leaf)))
        if is_float_array(leaf):
            return part(leaf)
        same = kind == "equal" and isinstance(leaf, np.ndarray) and leaf.size
        return np.full_like(leaf, leaf.flat[0]) if same else leaf

    def part(leaf: Any) -> Any:
        nonlocal place
        place += 1
        if only and place != int(only):
            return leaf
        form, wide = format_of(leaf.dtype), np.array(leaf, np.float64)
        if kind == "subnormal":
            made = np.sign(wide) * form.spacing * generator.integers(1, 2 ** min(form.digits - 1, 20), wide.shape)
        elif kind == "overflow":
            made = np.sign(wide) * form.largest * generator.uniform(0.5, 0.99, wide.shape)
        else:
            made = FLOAT_KINDS[kind](wide, generator)
        return np.asarray(made).astype(leaf.dtype)

    return jax.tree.map(one, arguments)


def is_float_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(leaf.dtype, jnp.floating)


def is_complex_array(leaf: Any) -> bool:
    known = isinstance(leaf, jax.Array | np.ndarray | np.generic)
    return known and jnp.issubdtype(leaf.dtype, jnp.complexfloating)


def parts(leaf: Any) -> tuple[Any, Any]:
    """The real and the imaginary part of a complex array, each an array of its own."""
    return (np.array(leaf.real), np.array(leaf.imag)) if isinstance(leaf, np.ndarray) else (leaf.real, leaf.imag)


def complex_of(real: Any, imaginary: Any) -> Any:
    """The array of these parts: NumPy's of NumPy's, else JAX's."""
    if not isinstance(real, np.ndarray):
        return jax.lax.complex(real, imaginary)
    made = np.empty(real.shape, np.result_type(real.dtype, np.complex64))
    made.real, made.imag = real, imaginary
    return made


@dataclasses.dataclass(frozen=True)
class Source:
    """Where cases come from: `draw(sizes, generator)` gives arguments at sizes of the letters. `given`: the arguments
    were passed by the user, and random ones lie near them. `ranged`: floats have a declared range."""

    draw: Callable[[Mapping[str, int], np.random.Generator], tuple[Any, ...]]
    letters: tuple[str, ...] = ()
    allowed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    given: bool = False
    ranged: bool = False

    def case(self, sizes: Mapping[str, int], kind: str, seed: int, modes: tuple[str, ...] = BOTH) -> Case:
        generator = np.random.default_rng([seed, *sizes.values()])
        arguments = self.draw(sizes, generator)
        if kind == "random" and self.given:
            arguments = jax.tree.map(lambda x: _near(x, generator), arguments)
        elif kind not in NOT_EDGES:
            arguments = altered(kind, arguments, generator)
        return Case(dict(sizes), kind, seed, arguments, kind not in NOT_EDGES, modes)

    def base(self) -> dict[str, int]:
        def one(letter: str, prime: int) -> int:
            allowed = self.allowed.get(letter)
            return prime if allowed is None else min(allowed, key=lambda size: (size < 1, abs(size - prime)))

        return {letter: one(letter, BASES[i % len(BASES)]) for i, letter in enumerate(self.letters)}

    def cases(self, fast: bool = False) -> Iterator[Case]:
        """The base first, then its other inputs, then the other sizes in ascending order."""
        base = self.base()
        if self.given:
            yield self.case(base, "given", 0)
        for seed in range(SEEDS):
            yield self.case(base, "random", seed)
        for kind in () if fast else self.special():
            yield self.case(base, kind, 0, modes_of(kind))
        for sizes, modes in sorted(self.shapes(fast), key=lambda pair: sum(pair[0].values())):
            yield self.case(sizes, "random", 0, modes)

    def special(self) -> list[str]:
        """The kinds of input other than random."""
        leaves = jax.tree.leaves(self.case(self.base(), "random", 0).arguments)
        floats = sum(is_float_array(leaf) + 2 * is_complex_array(leaf) for leaf in leaves)
        kinds = () if self.ranged else KINDS[1:]
        each = [[f"{kind}:{i}" for i in range(floats)] if kind in ONE_BY_ONE else [kind] for kind in kinds]
        return [kind for some in each for kind in some]

    def searched(self) -> tuple[list[int], Callable[[tuple[int, ...]], Case]]:
        """What a search chooses from: how many values each number of a choice has, and a function choice -> case. The
        numbers are the index of each size among those allowed, that of the kind (half of which are random), and the
        seed."""
        own = [self.allowed.get(letter, SEARCHED) for letter in self.letters]
        special = self.special()
        kinds = ["random"] * max(len(special), 1) + special

        def case(choice: tuple[int, ...]) -> Case:
            *places, kind, seed = choice
            while math.prod(max(o[p], 1) for o, p in zip(own, places)) > _PRODUCT and max(places):
                places[places.index(max(places))] //= 2
            sizes = {letter: o[p] for letter, o, p in zip(self.letters, own, places)}
            return self.case(sizes, kinds[kind], seed, modes_of(kinds[kind]))

        return [*map(len, own), len(kinds), 2**10], case

    def shapes(self, fast: bool) -> list[tuple[dict[str, int], tuple[str, ...]]]:
        """The sizes other than the base, and the derivatives that are judged there."""
        base, found = self.base(), {}

        def add(sizes: dict[str, int], modes: tuple[str, ...] = ()) -> None:
            if self.allows(sizes) and sizes != base:
                found.setdefault(tuple(sizes.items()), modes)

        for letter in self.letters:
            own = self.allowed.get(letter, ())
            ends = dict.fromkeys(own if isinstance(own, tuple) else (own[0], own[-1]), ("vjp",)) if own else {}
            for size, modes in ({129: ("vjp",)} if fast else ALONE | ends).items():
                add(base | {letter: size}, modes)
        if self.letters and not fast:
            add(dict.fromkeys(self.letters, 2), ("vjp",))
            going = [*ROUND, *[1] * (len(self.letters) - len(ROUND))]
            for turn in range(len(going)):
                add({letter: going[(i + turn) % len(going)] for i, letter in enumerate(self.letters)})
        return [(dict(key), modes) for key, modes in found.items()]

    def allows(self, sizes: Mapping[str, int]) -> bool:
        return all(size in self.allowed.get(letter, (size,)) for letter, size in sizes.items())

    def one(self, text: str) -> Case:
        """The case of a label. Raises PlanError for a text that is no label."""
        sizes = self.base()
        kind, seed = "given" if self.given else "random", 0
        for part in filter(None, (part.strip() for part in text.split(","))):
            letter, equals, size = part.partition("=")
            known = [*KINDS, *(["given"] if self.given else [])]
            if equals and letter in self.letters and size.isdigit():
                sizes[letter] = int(size)
            elif part.isdigit():
                seed = int(part)
            elif part.partition(":")[0] in known:
                kind = part
            else:
                choice = [*(f"{letter}=5" for letter in self.letters), *known]
                raise PlanError(f"case: no {part!r}{nearest(part, choice)} ({', '.join(choice)}, and a seed)")
        return self.case(sizes, kind, seed, modes_of(kind))


def modes_of(kind: str) -> tuple[str, ...]:
    """The derivatives that are judged at a kind of input."""
    return BOTH if kind in (*SMOOTH_KINDS, *NOT_EDGES) else ()


def _near(leaf: Any, generator: np.random.Generator) -> Any:
    """A random step of a tenth of the array's root mean square, or of 1 where it is 0, as in `oracle.unrounded`."""
    if is_complex_array(leaf):
        return complex_of(*(_near(part, generator) for part in parts(np.asarray(leaf))))
    if not is_float_array(leaf):
        return leaf
    wide = np.array(leaf, np.float64)
    size = float(np.sqrt(np.mean(wide**2))) if wide.size else 0.0
    return (wide + 0.1 * (size or 1.0) * generator.standard_normal(wide.shape)).astype(leaf.dtype)


def from_letters(text: str, dtype: str | None) -> tuple[Source, str]:
    """The source of what `--args` says, and the dtype under test: `dtype` for all floats or, if None, what is
    written."""
    parsed = spec.parse(text)
    source = Source(
        lambda sizes, generator: spec.draw(parsed, sizes, dtype or "", generator),
        parsed.letters,
        parsed.allowed,
        ranged=any(item.is_float and item.bounds for item in parsed.items),
    )
    return source, dtype or parsed.own_dtype or "float32"
