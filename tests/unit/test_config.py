"""Configuration: exact round trip, strict reading, errors that name the place, atomic writing."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from wamkit.config import ConfigError, from_dict, from_json, load_json, save_json, to_dict, to_json
from wamkit.errors import nearest
from wamkit.nn.encoders import TextConfig
from wamkit.nn.objectives import TargetConfig
from wamkit.runs.config import TrainConfig, WindowConfig
from wamkit.types import Query, WamkitError


class Side(enum.Enum):
    LEFT = 1
    RIGHT = 2


@dataclass(frozen=True)
class Adam:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Sgd:
    lr: float = 0.1
    momentum: float | None = None


@dataclass(frozen=True)
class Model:
    width: int = 128

    def __post_init__(self) -> None:
        if self.width % 4:
            raise ValueError(f"width must be a multiple of 4, got {self.width}")


@dataclass(frozen=True)
class Deep(Model):
    layers: int = 4


@dataclass(frozen=True)
class Text:
    kind: Literal["table", "t5"] = "table"
    buckets: int = 256


@dataclass(frozen=True)
class Train:
    optimizer: Adam | Sgd = field(default_factory=Adam)
    model: Model = field(default_factory=Model)
    text: Text = field(default_factory=Text)
    parts: tuple[Adam | Sgd, ...] = ()


@dataclass(frozen=True)
class Run:
    name: str
    train: Train = field(default_factory=Train)
    out: Path = Path("runs/first")
    data: Path | None = None
    note: str | None = None
    query: Query = Query.POLICY
    side: Side = Side.LEFT
    precision: Literal["auto", "bf16"] = "auto"
    pairs: tuple[tuple[str, float], ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    flag: bool = False
    seed: int = 0
    number: int | float = 1
    anything: Any = None


FULL = Run(
    name="über",
    train=Train(Sgd(0.1 + 0.2, momentum=1e-300), Deep(8, layers=2), Text("t5"), (Adam(betas=(0.5, 0.75)), Sgd())),
    out=Path("a/b c"),
    data=Path("d"),
    note="line\nbreak",
    query=Query.JOINT,
    side=Side.RIGHT,
    precision="bf16",
    pairs=(("video", 0.5), ("action", 2.0)),
    weights={"a.b": 1 / 3},
    flag=True,
    seed=2**70,
    number=2,
    anything={"x": [1, None]},
)


@pytest.mark.parametrize("config", [Run("x"), FULL, Run("x", number=float("inf"))])
def test_the_round_trip_is_exact(config: Run) -> None:
    back = from_json(Run, to_json(config))
    assert back == config
    assert repr(back) == repr(config)  # 2 is not 2.0, and a Deep is not a Model


def test_only_ambiguous_dataclasses_are_tagged() -> None:
    data = to_dict(FULL)["train"]
    assert data["optimizer"]["kind"] == "Sgd"
    assert data["model"]["kind"] == "Deep"
    assert [p["kind"] for p in data["parts"]] == ["Adam", "Sgd"]
    assert "kind" not in to_dict(Run("x"))["train"]["model"]


def test_missing_keys_take_their_defaults_and_an_integer_may_stand_for_a_float() -> None:
    run = from_dict(Run, {"name": "x", "train": {"optimizer": {"kind": "Adam", "lr": 1}}})
    assert run == Run("x", Train(Adam(1.0)))
    assert type(run.train.optimizer.lr) is float


def _optimizer(data: Any) -> dict[str, Any]:
    return {"name": "x", "train": {"optimizer": data}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"nmae": "x"}, r"^nmae: unknown key \(did you mean 'name'\?\)"),
        ({}, "^name: missing, and Run has no default"),
        ([], r"^configuration: expected the fields of Run, found \[\] \(list\)"),
        (_optimizer({"kind": "Adam", "lrr": 1}), r"^train.optimizer.lrr: unknown key .*'lr'"),
        (_optimizer({"kind": "Adam", "lr": "fast"}), r"^train.optimizer.lr: expected float, found 'fast' \(str\)"),
        (_optimizer({"kind": "Adma"}), r"^train.optimizer.kind: unknown 'Adma' \(did you mean 'Adam'\?\)"),
        (_optimizer({"lr": 1}), "^train.optimizer.kind: missing; known: Adam, Sgd"),
        (_optimizer({"kind": ["Adam"]}), r"^train.optimizer.kind: unknown \['Adam'\]"),
        (_optimizer(3), "^train.optimizer: expected the fields of Adam or the fields of Sgd, found 3"),
        (_optimizer({"kind": "Adam", "betas": [1, "b"]}), r"^train.optimizer.betas\[1\]: expected float"),
        (_optimizer({"kind": "Adam", "betas": [1]}), "^train.optimizer.betas: expected 2 entries, found 1"),
        (
            {"name": "x", "train": {"parts": [{"kind": "Adam"}, {"kind": "Sgd", "lr": None}]}},
            r"^train.parts\[1\].lr: expected float",
        ),
        ({"name": "x", "train": {"model": {"width": 6}}}, "^train.model: width must be a multiple of 4, got 6"),
        ({"name": "x", "train": {"model": {"kind": "Dep"}}}, r"^train.model.kind: unknown 'Dep' \(did you mean 'Deep'"),
        (
            {"name": "x", "train": {"text": {"kind": "tab"}}},
            r"^train.text.kind: expected one of 'table', 't5', found 'tab' \(s",
        ),
        ({"name": "x", "query": "polcy"}, r"^query: expected one of 'policy', .*\(did you mean 'policy'"),
        ({"name": "x", "side": True}, "^side: expected one of 1, 2, found True"),
        ({"name": "x", "flag": 1}, "^flag: expected bool, found 1"),
        ({"name": "x", "seed": True}, "^seed: expected int, found True"),
        ({"name": "x", "seed": 1.0}, "^seed: expected int, found 1.0"),
        ({"name": "x", "pairs": "video"}, "^pairs: expected a list for tuple, found 'video'"),
        ({"name": "x", "weights": {"a": "b"}}, "^weights.a: expected float"),
        ({"name": "x", "number": "1"}, r"^number: expected int \| float, found '1'"),
        ({"name": "x", "note": 3}, "^note: expected str, found 3"),
        ({"name": "x", "out": None}, "^out: expected a path as text, found None"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_place(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(Run, data)
    assert isinstance(caught.value, WamkitError)


def test_what_would_not_come_back_is_refused_when_writing() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: Any = None

    assert to_dict(Odd([1, 2])) == {"value": [1, 2]}
    with pytest.raises(ConfigError, match=r"^value: \(1, 2\) comes back from JSON as \[1, 2\]"):
        to_dict(Odd((1, 2)))
    with pytest.raises(ConfigError, match="^value: a configuration cannot hold .*object"):
        to_dict(Odd(object()))
    with pytest.raises(ConfigError, match="a dataclass instance"):
        to_dict({"value": 1})


def test_files_round_trip_and_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    save_json(path, FULL)
    assert load_json(Run, path) == FULL
    save_json(path, {"plain": [1]})
    assert json.loads(path.read_text()) == {"plain": [1]}
    with pytest.raises(ConfigError, match=r"config.json: plain: unknown key"):
        load_json(Run, path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="config.json cannot be read as JSON"):
        load_json(Run, path)
    with pytest.raises(ConfigError, match="none.json"):
        load_json(Run, tmp_path / "none.json")


def test_nearest() -> None:
    options = ["button-press-topdown-v3", "drawer-open-v3", "window-close-v3"]
    assert nearest("drawer-opne-v3", options) == " (did you mean 'drawer-open-v3'?)"
    assert nearest("zzz", options) == ""
    protocols = ["libero-10", "metaworld-mt10", "metaworld-mt50"]
    assert [nearest(x, protocols) for x in ("mt10", "MT50", "metaworld")] == [
        " (did you mean 'metaworld-mt10'?)",
        " (did you mean 'metaworld-mt50'?)",
        " (did you mean 'metaworld-mt10'?)",
    ]
    assert nearest(None, ["none"]) == " (did you mean 'none'?)" and nearest("a", []) == nearest("", ["b"]) == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(steps=0), "steps = 0: must be at least 1"),
        (lambda: TrainConfig(final_lr=2.0), "final_lr = 2.0: must be between 0 and 1"),
        (lambda: TrainConfig(lr=float("inf")), "lr = inf: must be at least"),
        (lambda: TrainConfig(seed=2**64), "seed = .*: must be between 0 and"),
        (lambda: TrainConfig(weights=(("future", -1.0),)), "weights: future weighs -1.0"),
        (lambda: TargetConfig(modes=(0.0, 0.0, 0.0, 0.0)), "modes = .*not all 0"),
        (lambda: TargetConfig(modes=(1.0, float("nan"), 0.0, 0.0)), "modes = .*at least 0"),
        (lambda: TargetConfig(future_shift=-1.0), "future_shift = -1.0"),
        (lambda: TextConfig(buckets=0), "buckets = 0: must be at least 1"),
        (lambda: WindowConfig(frame_offsets=()), r"frame_offsets = \(\): must be between 1 and 16"),
        (lambda: WindowConfig(chunk=4, frame_offsets=(2, 8)), r"frame_offsets = \(2, 8\): must be between 1 and 4"),
        (lambda: WindowConfig(frame_offsets=(8, 4)), "must ascend"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
