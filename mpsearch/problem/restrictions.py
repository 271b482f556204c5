"""`Restrictions`: what a user allows each layer, read from `--fix NAME=W8A8` and `--bits NAME=2..6`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mpsearch.errors import OptionError, UnknownNameError, UserError
from mpsearch.problem.assignment import Candidate
from mpsearch.problem.layer import Layer
from mpsearch.problem.problem import Problem

Candidates = tuple[tuple[Candidate, ...], ...]
_BITS = re.compile(r"([WA]?)(\d+(?:,\d+)*|(\d+)(?:\.\.|-)(\d+))(,float)?")


@dataclass(frozen=True)
class Rule:
    """What the layers that a pattern matches may have.

    Args:
        text: Text as typed, with its option.
        pattern: A layer's name, or one with `*`, `?` and `[...]`.
        fixed: The only candidate; None for a rule about bits.
        of_inputs: Whether `bits` are those of the unit's input, not of its weight.
        bits: That are allowed.
        floats: Whether the unit may stay float too.
    """

    text: str
    pattern: str
    fixed: Candidate | None = None
    of_inputs: bool = False
    bits: frozenset[int] = frozenset()
    floats: bool = False

    @property
    def of_weights(self) -> bool:
        """Whether it is about the bits of weights."""
        return self.fixed is None and not self.of_inputs

    def matches(self, name: str) -> bool:
        """Whether it is about a layer."""
        return fnmatchcase(name, self.pattern)

    def allows(self, candidate: Candidate) -> bool:
        """Whether a candidate keeps it; the float candidate has no bits, and must be named."""
        if self.fixed is not None:
            return candidate == (self.fixed.of_inputs if _is_weightless(candidate) else self.fixed)
        if candidate.is_float:
            return self.floats
        return (candidate.a_bits if self.of_inputs else candidate.w_bits) in self.bits


@dataclass(frozen=True)
class Restrictions:
    """Rules for layers. Of several about one layer's weights, or its inputs, the last one counts; a fixed
    candidate counts above any bits.

    Args:
        rules: In the order in which they were typed.
    """

    rules: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, fix: Sequence[str] = (), bits: Sequence[str] = ()) -> Restrictions:
        """Read `NAME=W8A8` or `NAME=float`, and `NAME=2..6`, `NAME=2,4,8` (weights) or `NAME=A4..8` (inputs),
        each with `,float` behind it where the unit may stay float too. NAME may be a pattern.

        Raises:
            OptionError: Anything else, or bits outside 2 to 8.
        """
        return cls((*(_fixing(text) for text in fix), *(_bounding(text) for text in bits)))

    def choose(
        self,
        layers: Sequence[Layer],
        default: Sequence[Sequence[Candidate]],
        possible: Sequence[Sequence[Candidate]] | None = None,
    ) -> Candidates:
        """The candidates of L layers: of a layer that rules are about, the possible ones that keep them; of
        any other the default.

        Members of a tie share a choice and so what is left to each. A rule about the weights alone leaves the
        inputs what they are by default, and the other way round. A pattern passes over layers that can only
        be float; a name does not.

        Args:
            layers: L.
            default: Candidates of each.
            possible: Those that rules may pick from; None for the default alone.

        Raises:
            UnknownNameError: A name that no layer has, or a pattern that none matches.
            OptionError: Nothing is left to a layer, or to a tie; or a pattern matches layers that can only be
                float.
        """
        possible = default if possible is None else possible
        for rule in self.rules:
            matched = [i for i, layer in enumerate(layers) if rule.matches(layer.name)]
            if not matched:
                raise UnknownNameError(
                    "layer", rule.pattern, [layer.name for layer in layers], f"{rule.text} is about none."
                )
            _check_float(rule, {layers[i].name: possible[i] for i in matched})
        left: list[tuple[Candidate, ...]] = [tuple(row) for row in default]
        for group in _ties(layers):
            about = {i: rules for i in group if (rules := self._about(layers[i].name, possible[i]))}
            if about:
                for i in group:
                    left[i] = _left(
                        default[i], possible[i], [rule for rules in about.values() for rule in rules]
                    )
                    _check_left(
                        left[i],
                        [layers[k].name for k in about],
                        [r.text for rules in about.values() for r in rules],
                        possible[i],
                    )
        return tuple(left)

    def apply(self, problem: Problem) -> Problem:
        """The problem with the candidates that the rules leave. Raises as `choose`."""
        left = self.choose(problem.layers, problem.candidates)
        return (
            problem.only(
                [[row.index(c) for c in kept] for row, kept in zip(problem.candidates, left, strict=True)]
            )
            if self.rules
            else problem
        )

    def _about(self, name: str, possible: Sequence[Candidate]) -> list[Rule]:
        """The rules that count for a layer: one that fixes it, or the last about its weights and the last
        about its inputs.
        """
        only_float = all(c.is_float for c in possible)
        weightless = any(_is_weightless(c) for c in possible)
        found = [
            rule
            for rule in self.rules
            if rule.matches(name)
            and (rule.pattern == name or not (only_float or (weightless and rule.of_weights)))
        ]
        fixing = [rule for rule in found if rule.fixed is not None]
        if fixing:
            return fixing[-1:]
        return [
            rules[-1]
            for inputs in (False, True)
            if (rules := [rule for rule in found if rule.of_inputs is inputs])
        ]


def _is_weightless(candidate: Candidate) -> bool:
    """Whether it is a choice of a unit without a weight."""
    return candidate.w_bits is None and not candidate.is_float


def _left(
    default: Sequence[Candidate], possible: Sequence[Candidate], rules: Sequence[Rule]
) -> tuple[Candidate, ...]:
    if all(rule.fixed is None and not rule.of_inputs for rule in rules):
        inputs = {c.a_bits for c in default}
        possible = [c for c in possible if c.is_float or c.a_bits in inputs]
    elif all(rule.fixed is None and rule.of_inputs for rule in rules):
        weights = {c.w_bits for c in default}
        possible = [c for c in possible if c.is_float or c.w_bits in weights]
    return tuple(c for c in possible if all(rule.allows(c) for rule in rules))


def _check_float(rule: Rule, matched: Mapping[str, Sequence[Candidate]]) -> None:
    """Raises OptionError where a pattern is about layers alone that can only be float: it would be passed
    over without a word.
    """
    choices = [c for row in matched.values() for c in row]
    if rule.pattern in matched or any(rule.allows(c) or not c.is_float for c in choices):
        return
    names = ", ".join([*matched][:3]) + (f", ... ({len(matched)} in all)" if len(matched) > 3 else "")
    raise OptionError(
        f"{rule.text} is about {names}, which can only be float here, so it would change nothing. Name "
        "layers that are quantised, or leave it out."
    )


def _check_left(
    left: Sequence[Candidate], names: Sequence[str], texts: Sequence[str], possible: Sequence[Candidate]
) -> None:
    if left:
        return
    shown = ", ".join(map(str, possible[:12])) + (
        f", ... ({len(possible)} in all)" if len(possible) > 12 else ""
    )
    who = (
        f"the layer {names[0]!r}"
        if len(names) == 1
        else f"the layers {', '.join(map(repr, names))}, which share a choice,"
    )
    raise OptionError(
        f"{' and '.join(dict.fromkeys(texts))}: nothing is left for {who} of its candidates {shown}. "
        "Allow at least one of them."
    )


def _ties(layers: Sequence[Layer]) -> list[list[int]]:
    return Problem(tuple(layers), ((),) * len(layers)).ties


def _split(option: str, text: str, right: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals or not name.strip() or not value.strip():
        raise OptionError(
            f"{option} {text!r} cannot be read. Write {right}; NAME may be a pattern such as 'layer1.*'."
        )
    return name.strip(), value.strip()


def _fixing(text: str) -> Rule:
    name, value = _split("--fix", text, "NAME=W8A8 or NAME=float")
    try:
        return Rule(f"--fix {text}", name, Candidate.parse(value))
    except UserError as error:
        raise OptionError(f"--fix {text!r} cannot be read: {error}") from None


def _bounding(text: str) -> Rule:
    right = "NAME=2..6, NAME=2,4,8, NAME=4..8,float, or for inputs NAME=A4..8"
    name, value = _split("--bits", text, right)
    match = _BITS.fullmatch(value)
    if match is None:
        raise OptionError(f"Cannot read --bits {text!r}: {value!r} is no range of bit-widths. Write {right}.")
    ends = [int(part) for part in ((match[3], match[4]) if match[3] else match[2].split(","))]
    bits = range(ends[0], ends[1] + 1) if match[3] else ends
    if not bits or not 2 <= min(ends) <= max(ends) <= 8:
        raise OptionError(f"--bits {text!r} asks for {value}; bits are 2 to 8, the lower first.")
    return Rule(f"--bits {text}", name, None, match[1] == "A", frozenset(bits), match[5] is not None)
