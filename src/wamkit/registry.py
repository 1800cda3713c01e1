"""Registries: families, environments and other parts by name, those of out-of-tree packages included."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from wamkit.errors import WamkitError, missing_package, nearest

T = TypeVar("T")


class RegistryError(WamkitError, LookupError):
    """A name is taken or unknown, or its plug-in does not load."""


class Registry(Generic[T]):
    """Names to objects of one kind.

    kind: the kind, for error messages ("family").
    entry_point_group: the group under which other installed packages announce modules that register more
        (`[project.entry-points."wamkit.families"]`); None for no plug-ins.
    package: the package whose modules register the built-in objects ("wamkit.envs"); None for a registry that is filled
        where it is defined. A look-up by name first imports the module of that name, with "_" for "-". Only where that
        does not help, and for a list of all names, are plug-ins and all modules of the package imported.

    Examples:
        >>> ANIMALS = Registry("animal")
        >>> @ANIMALS.register("cat")
        ... class Cat: ...
        >>> "cat" in ANIMALS, ANIMALS.names()
        (True, ['cat'])
        >>> ANIMALS.get("cat").__name__
        'Cat'
    """

    def __init__(self, kind: str, entry_point_group: str | None = None, package: str | None = None):
        self.kind = kind
        self._group = self._announced = entry_point_group
        self._package = package
        self._items: dict[str, T] = {}
        self._origin: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers an object under `name`; a name that is taken raises RegistryError."""

        def add(item: T) -> T:
            origin = getattr(item, "__module__", "an unknown module")
            if name in self._items:
                taken = self._origin[name]
                raise RegistryError(f"{self.kind} {name!r} of {origin} is already registered by {taken}; rename one")
            self._items[name], self._origin[name] = item, origin
            return item

        return add

    def get(self, name: str) -> T:
        """The object called `name`; an unknown name raises RegistryError with the nearest and all known names."""
        if name not in self._items:
            self._load_module(name)
        if name not in self._items and name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise RegistryError(f"unknown {self.kind} {name!r}{nearest(name, self._items)}; known: {known}")
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load_all()
        return sorted(self._items)

    def maker(self, name: str) -> str:
        """Name and version of the package whose plug-in registered `name`; "" for an object of wamkit's own."""
        points = entry_points(group=self._announced) if self._announced else ()
        if not points or name not in self._items and name not in self.names():
            return ""
        top = self._origin[name].partition(".")[0]
        dists = (point.dist for point in points if point.module.partition(".")[0] == top)
        return next((f"{dist.name} {dist.version}" for dist in dists if dist is not None), "")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def _load_module(self, name: str) -> None:
        module = name.replace("-", "_")
        if self._package and module.isidentifier() and importlib.util.find_spec(f"{self._package}.{module}"):
            importlib.import_module(f"{self._package}.{module}")

    def _load_all(self) -> None:
        if self._package:
            load_package(self._package)
        self._load_plugins()

    def _load_plugins(self) -> None:
        group, self._group = self._group, None  # cleared first: a plug-in may look names up while it loads
        for point in entry_points(group=group) if group else ():
            try:
                point.load()
            except Exception as e:
                self._group = group
                where = f"{point.value!r} of package {point.dist.name if point.dist else '?'}"
                raise RegistryError(f"{self.kind} plug-in {where} does not load: {e!r}; update or uninstall it") from e


def load_package(package: str) -> None:
    """Imports every module of a package, so that each registers its objects; an error in one of them propagates."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def import_named(module: str, what: str) -> ModuleType:
    """A module that an option names, of an installed package or in the present folder.

    what: the option, for errors.   Raises RegistryError for one that cannot be imported, and for one inside of a data
    set or a run, from which no code runs.
    """
    if not all(part.isidentifier() for part in module.split(".")):
        raise RegistryError(f"{what}: {module!r} is no name of a module, such as folder.file")
    place = Path.cwd()
    for part in module.split("."):
        place /= part
        if (place / "meta/info.json").exists() or (place / "checkpoints").exists():
            raise RegistryError(f"{what}: {module} lies in {place}, a data set or a run: no code is taken from there")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except ImportError as e:
        remedy = missing_package(e) or "it is looked for in the present folder and among the installed packages"
        raise RegistryError(f"{what}: the module {module!r} cannot be imported ({e}); {remedy}") from e


def named_object(name: str, what: str) -> Any:
    """The object that an option names as MODULE:OBJECT. Raises as `import_named`, and for an object that is not there.

    Examples:
        >>> named_object("math:floor", "option rounding")(2.5)
        2
    """
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise RegistryError(f"{what}: {name!r} is not MODULE:OBJECT")
    found = import_named(module, what)
    if not hasattr(found, attribute):
        near = nearest(attribute, [n for n in vars(found) if not n.startswith("_")])
        raise RegistryError(f"{what}: {module} has no {attribute!r}{near}")
    return getattr(found, attribute)
