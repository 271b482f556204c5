"""How extension points find their members: one file each, a decorator, and nothing else to edit.

A member is a frozen dataclass; its fields are its options. `Registry.create("hessian_trace:probes=64")`
builds one from what a user typed. Packages outside mpsearch add members through the entry-point group of the
same name as the package.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import pkgutil
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from mpsearch.errors import OptionError, UnknownNameError

T = TypeVar("T")
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


class Registry(Generic[T]):
    """Members of one extension point by name.

    Args:
        kind: What a member is called in messages, such as `objective`.
        package: Package whose modules are imported, once, at the first look-up; also the entry-point group.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._members: dict[str, type[T]] = {}
        self._aliases: dict[str, str] = {}
        self._loaded = False

    def register(self, name: str, aliases: Mapping[str, str] | None = None) -> Callable[[type[T]], type[T]]:
        """Class decorator.

        Args:
            name: Name of the member.
            aliases: Further name -> the options that it stands for, such as `{"openvino-cpu-bf16":
                "precision=bf16"}`.
        Raises: ValueError: Another class has the name.
        """

        def add(cls: type[T]) -> type[T]:
            for alias, options in (aliases or {}).items():
                text = f"{name}:{options}" if options else name
                if alias in self._members or self._aliases.setdefault(alias, text) != text:
                    raise ValueError(
                        f"The name {alias!r} of a {self.kind} is given twice: to {text!r} and to another."
                    )
            held = self._members.get(name)
            if name in self._aliases:
                raise ValueError(
                    f"The name {name!r} of a {self.kind} is given twice: it is short for "
                    f"{self._aliases[name]!r}."
                )
            if held is not None and (held.__module__, held.__qualname__) != (
                cls.__module__,
                cls.__qualname__,
            ):
                raise ValueError(
                    f"The {self.kind} {name!r} is registered twice: by {held.__module__} and by "
                    f"{cls.__module__}."
                )
            cls.name = name  # type: ignore[attr-defined]
            self._members[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """Names of all members, sorted."""
        self._load()
        return sorted(self._members)

    def aliases(self) -> dict[str, str]:
        """Further names, sorted -> the text that each stands for."""
        self._load()
        return dict(sorted(self._aliases.items()))

    def get(self, name: str) -> type[T]:
        """The class of a name or an alias. Raises UnknownNameError, with the closest known name."""
        self._load()
        name = self._aliases.get(name, name).partition(":")[0]
        if name not in self._members:
            raise UnknownNameError(self.kind, name, {**self._members, **self._aliases})
        return self._members[name]

    def create(self, text: str) -> T:
        """Build a member from `name` or `name:option=value,option=value`.

        Raises:
            UnknownNameError: No member has the name.
            OptionError: It has no such option, or the value does not fit the option's type.
        """
        name, _, given = text.partition(":")
        cls = self.get(name.strip())
        rest = ",".join((self._aliases.get(name.strip(), "").partition(":")[2], given))
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        options: dict[str, Any] = {}
        for part in filter(None, (p.strip() for p in rest.split(","))):
            key, equals, value = part.partition("=")
            if not equals or key not in fields:
                close = difflib.get_close_matches(key, fields, n=1)
                meant = f" Did you mean {close[0]!r}?" if close and close[0] != key else ""
                raise OptionError(
                    f"The {self.kind} {name!r} has no option {part!r}.{meant} Its options: "
                    f"{', '.join(fields) or 'none'}, written name:option=value."
                )
            options[key] = _convert(value, hints[key], f"{self.kind} {name!r}, option {key!r}")
        return cls(**options)

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        for entry in importlib.metadata.entry_points(group=self.package):
            self.register(entry.name)(entry.load())
        self._loaded = True


def _convert(value: str, hint: Any, where: str) -> Any:
    choices = [a for a in typing.get_args(hint) if a is not type(None)] or [hint]
    if value.lower() == "none" and type(None) in typing.get_args(hint):
        return None
    if typing.get_origin(hint) is typing.Literal:
        if value not in choices:
            raise OptionError(f"The {where} is {value!r}; it may be {', '.join(map(repr, choices))}.")
        return value
    kind = choices[0]
    try:
        if kind is bool:
            if value.lower() not in _TRUE | _FALSE:
                raise ValueError(value)
            return value.lower() in _TRUE
        return kind(value)
    except (TypeError, ValueError):
        raise OptionError(f"The {where} is {value!r}, which is not of the type {kind.__name__}.") from None
