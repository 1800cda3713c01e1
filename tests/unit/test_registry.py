"""The registry: names, duplicates, suggestions, package scan and plug-ins of other packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from wamkit.registry import Registry, RegistryError, load_package
from wamkit.types import WamkitError

PARTS: Registry[type] = Registry("part", "wamkit_test_parts")


def test_register_returns_the_object_and_get_finds_it() -> None:
    registry: Registry[type] = Registry("family")

    @registry.register("unified")
    class Unified:
        """A family."""

    assert registry.get("unified") is Unified
    assert "unified" in registry and "bc" not in registry
    assert registry.names() == list(registry) == ["unified"]


def test_a_name_is_registered_once() -> None:
    registry: Registry[object] = Registry("family")
    registry.register("bc")(int)
    with pytest.raises(RegistryError, match=r"family 'bc' of builtins is already registered by builtins"):
        registry.register("bc")(float)
    assert registry.get("bc") is int


def test_an_unknown_name_suggests_and_lists() -> None:
    registry: Registry[object] = Registry("family")
    with pytest.raises(WamkitError, match=r"unknown family 'x'; known: none"):
        registry.get("x")
    registry.register("unified")(int)
    registry.register("bc")(int)
    with pytest.raises(RegistryError, match=r"'unifid' \(did you mean 'unified'\?\); known: bc, unified"):
        registry.get("unifid")


def _package(folder: Path, name: str, modules: dict[str, str]) -> None:
    (folder / name).mkdir(parents=True)
    for module, text in {"__init__": "", **modules}.items():
        (folder / name / f"{module}.py").write_text(text)


def test_a_package_scan_imports_every_module_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = "import sys\nsys.scan_count = getattr(sys, 'scan_count', 0) + 1\n"
    _package(tmp_path, "scanned_parts", {"one": count, "two": count})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "scan_count", 0, raising=False)
    load_package("scanned_parts")
    load_package("scanned_parts")
    assert sys.scan_count == 2
    assert {"scanned_parts.one", "scanned_parts.two"} <= set(sys.modules)


def test_an_error_in_a_scanned_module_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _package(tmp_path, "broken_parts", {"bad": "import a_module_that_does_not_exist"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_does_not_exist"):
        load_package("broken_parts")


def _distribution(folder: Path, package: str, group: str) -> None:
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\nmine = {package}.family\n")


def test_a_plugin_of_another_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"from {__name__} import PARTS\n\n@PARTS.register('mine')\nclass Mine:\n    pass\n"
    _package(tmp_path, "plugin_parts", {"family": text})
    _distribution(tmp_path, "plugin_parts", "wamkit_test_parts")
    monkeypatch.syspath_prepend(tmp_path)
    assert "plugin_parts.family" not in sys.modules
    assert PARTS.get("mine").__module__ == "plugin_parts.family"
    assert PARTS.names() == ["mine"]


def test_a_plugin_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _package(tmp_path, "bad_plugin", {"family": "1 / 0"})
    _distribution(tmp_path, "bad_plugin", "wamkit_bad_parts")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[object] = Registry("part", "wamkit_bad_parts")
    for _ in range(2):  # it stays an error: a second look-up must not pass it over
        with pytest.raises(
            RegistryError, match=r"plug-in 'bad_plugin.family' of package bad.plugin does not load: ZeroDiv"
        ):
            registry.names()


def test_a_look_up_by_name_imports_the_module_of_that_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry: Registry[type] = Registry("robot", package="found_robots")
    monkeypatch.setattr(sys, "found_robots_registry", registry, raising=False)
    text = "import sys\n\n@sys.found_robots_registry.register('{0}')\nclass Robot:\n    pass\n"
    modules = {"two_arms": text.format("two-arms"), "other": text.format("three-arms"), "helper": ""}
    _package(tmp_path, "found_robots", modules)
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.get("two-arms").__module__ == "found_robots.two_arms"
    assert "found_robots.other" not in sys.modules
    assert registry.get("three-arms").__module__ == "found_robots.other", "named unlike its module: found by the scan"
    assert registry.names() == ["three-arms", "two-arms"]
    with pytest.raises(RegistryError, match=r"unknown robot 'a\.b'"):
        registry.get("a.b")
