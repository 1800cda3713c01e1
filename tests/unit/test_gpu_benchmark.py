"""The script for a GPU, part by part on the CPU: a tiny model of the real classes goes the same ways."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wamkit.runs.sizing import FREE
from wamkit.types import WamkitError

pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")
pytest.importorskip("peft", reason="the extra `pretrained` is not installed")
from benchmarks import gpu  # noqa: E402

FIGURES = {
    "parity": ("losses_away", "gradients_away", "policy_actions_away", "joint_frames_away"),
    "finetune": ("samples_per_s", "tokens_per_s", "mfu", "peak_memory_gb"),
    "lora": ("samples_per_s", "tokens_per_s", "mfu", "peak_memory_gb"),
    "query": ("policy_ms", "joint_ms", "joint_decode_ms", "policy_float32_ms", "policy_tflop", "bfloat16_away"),
    "query_compiled": ("policy_ms", "joint_ms", "first_s", "away"),
    "query_graph": ("ungraphed_ms", "away", "note"),
    "encode": ("image_ms", "window_ms", "decode_ms", "windows_per_s", "windows_per_s_bfloat16"),
    "demo": ("codec_step_ms", "main_step_ms", "all_steps_s"),
    "query_graph_compiled": ("ungraphed_ms", "away", "note"),
    "finetune_compiled": ("tokens_per_s", "mfu", "graphs"),
}


COUNTED: dict = {}
"""Sizes of models, counted once for all tests."""


def setup(minutes: float = 10, **options) -> gpu.Setup:
    """A tiny one on the CPU, with one repetition. Compilation stops where machine code would begin."""
    given = {"device": "cpu", "size": "tiny", "peak": 1.0, "rows": 2, "repeats": 1, "backend": "eager"} | options
    return gpu.Setup(deadline=time.monotonic() + 60 * minutes, **given, _sizes=COUNTED)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    return gpu.measure(setup(), tuple(gpu.PARTS), tmp_path_factory.mktemp("gpu") / "gpu.json", {})


@pytest.mark.parametrize("name", FIGURES)
def test_every_part_gives_its_figures(results, name):
    found = results[name]
    assert set(gpu.PARTS) == set(FIGURES) and set(FIGURES[name]) <= set(found), found
    for key, value in found.items():
        if key.endswith(("_ms", "_per_s")):
            assert value > 0, key


def test_figures_of_tiny_models_are_sane(results):
    assert all(v == 0 for k, v in results["parity"].items() if k.endswith("_away"))
    assert results["parity"]["largest_gradient"] > 0 < results["parity"]["largest_action"]
    for name in ("finetune", "lora", "finetune_compiled"):
        found = results[name]
        assert found["finite"] and found["rows"] == 2 and found["peak_memory_gb"] is None
        assert found["samples_per_s"] == pytest.approx(2000 / found["step_ms"], rel=1e-3)
    assert results["lora"]["learned_m"] < results["finetune"]["learned_m"]
    assert 0 < results["query"]["bfloat16_away"] < 0.01  # of actions of deviation 1
    for name in ("query_graph", "query_compiled", "query_graph_compiled"):
        assert results[name]["away"] < 2e-3, name
    assert results["query_graph"]["note"] == "a CPU has no CUDA graphs"
    demo = results["demo"]
    assert all(demo[f"{stage}_loss_last"] < demo[f"{stage}_loss_first"] for stage in ("codec", "main"))


def test_all_blocks_share_graphs_without_a_break(results):
    """A query has three kinds of passes: the context, then actions alone or with the future."""
    expected = {"query_compiled": 3, "query_graph_compiled": 2, "finetune_compiled": 1}
    for name, graphs in expected.items():
        assert (results[name]["graphs"], results[name]["graph_breaks"]) == (graphs, 0), name


def test_model_flops_are_three_forward_passes_and_two_of_a_frozen_model(results):
    # By hand: 2.97 TFLOP forward are 8.91 a sample; 30 samples a second are 267.3 TFLOP/s, 27 % of 989.
    assert gpu.mfu(3 * 2.97, 30, 989) == pytest.approx(0.27027, abs=1e-5)
    assert gpu.mfu(3 * 2.97, 30, None) is None
    sizes = setup().sizes(gpu.configuration("tiny"))
    for name, passes in (("finetune", 3), ("lora", 2)):
        found, per_s = results[name], results[name]["samples_per_s"]
        assert found["mfu"] == pytest.approx(passes * sizes.forward * per_s / 1.0, rel=2e-3)
        assert found["tokens_per_s"] == pytest.approx(sizes.tokens * per_s, rel=2e-3)


class Watch(TorchDispatchMode):
    """Notes operators that move values between devices."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        values = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor) and x.dim()]
        if len({x.device.type for x in values}) > 1:
            self.found.append(str(func))
        return out


def test_the_query_of_a_graph_neither_copies_from_the_host_nor_looks_at_values():
    """On the meta device a look at a value is an error by itself; a graph can hold neither."""
    model = gpu.build(gpu.configuration("tiny"), "meta").eval()
    with patch.object(torch, "autocast", lambda *a, **k: nullcontext()):  # which knows no meta device
        query = gpu.StaticPolicy.of(model, gpu.observation(model.spec))
        with Watch() as watch:
            actions = query()
    assert actions.is_meta and actions.shape == (1, 8, 7)
    assert watch.found == []


def test_a_batch_is_halved_until_it_fits():
    tried = []

    def work(rows: int) -> str:
        tried.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert gpu.halved_until_it_fits(12, work) == (3, "done") and tried == [12, 6, 3]
    with pytest.raises(torch.OutOfMemoryError):
        gpu.halved_until_it_fits(2, lambda rows: work(rows + 3))


def test_rows_follow_from_the_free_memory(monkeypatch):
    on = setup(device="cuda")
    sizes = setup().sizes(gpu.configuration("tiny"))
    weights = 2 * sum(sizes.parameters[k] for k in ("backbone", "action expert", "others"))
    for adapted, most in ((True, 5), (False, 40)):
        free = (sizes.fixed(adapted) + weights + 5.5 * sizes.kept) / FREE
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 0))
        assert (gpu._rows(on, sizes, adapted) == 5) if adapted else (5 < gpu._rows(on, sizes, adapted) < most)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    assert gpu._rows(on, sizes, False) == 1 and gpu._rows(setup(), sizes, False) == 2


def test_results_are_written_part_by_part_and_a_part_that_fails_is_not_the_end(monkeypatch, tmp_path, capsys):
    out, seen = tmp_path / "gpu.json", []

    def fine(given: gpu.Setup) -> dict:
        seen.append(json.loads(out.read_text())["parts"] if out.exists() else {})
        return {"policy_ms": 12.3456789}

    def full(given: gpu.Setup) -> dict:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore about it")

    def broken(given: gpu.Setup) -> dict:
        raise RuntimeError("no such kernel")

    parts = {"a": (fine, 9), "b": (full, 9), "c": (broken, 9), "d": (fine, 9)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    found = gpu.measure(setup(), tuple(parts), out, {"size": "tiny"})
    assert seen[0] == {} and list(seen[1]) == ["a", "b", "c"]
    written = json.loads(out.read_text())
    assert written == {"size": "tiny", "parts": found} and written["parts"]["a"]["policy_ms"] == 12.35
    assert found["b"]["out_of_memory"] == "CUDA out of memory. Tried to allocate 2 GiB."
    assert found["c"]["failed"] == "RuntimeError: no such kernel"
    assert "no such kernel" in capsys.readouterr().err
    status = gpu.main(gpu.Args("cpu", "tiny", out=out))
    shown = capsys.readouterr().out
    assert status == 1 and "no such kernel" in shown and "12.35" in shown


def test_parts_that_do_not_fit_into_the_time_are_left_out_by_name(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert gpu.main(gpu.Args("cpu", "tiny", minutes=0, out=out)) == 0
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == list(gpu.PARTS) and all(list(p) == ["left_out"] for p in parts.values())
    assert "0 s are left, and it may take" in capsys.readouterr().out
    assert sum(seconds for _, seconds in gpu.PARTS.values()) < 660  # guesses from above; all but the last ones fit


def test_aims_stand_beside_what_was_measured_at_full_size_alone():
    shown = gpu.table({"query": {"policy_ms": 123.0, "steps": 10}}, gpu.AIMS)
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["query", "policy_ms", "123.0", "at", "most", "100"],
        ["query", "steps", "10"],
    ]
    assert all(part in gpu.PARTS and figure in FIGURES[part] + ("policy_ms",) for part, figure in gpu.AIMS)


def test_peaks_are_known_by_name_and_others_are_asked_for():
    assert gpu.peak_of("NVIDIA H200") == gpu.peak_of("NVIDIA H100 80GB HBM3") == 989
    assert gpu.peak_of("NVIDIA H20") == 148 and gpu.peak_of("NVIDIA H100 PCIe") == 756
    with pytest.raises(WamkitError, match="the peak of 'Voodoo 2' is not known .* with --peak"):
        gpu.peak_of("Voodoo 2")
    with pytest.raises(WamkitError, match="there is no part 'vae'; there are parity, finetune"):
        gpu.main(gpu.Args("cpu", "tiny", parts=("vae",)))


def test_a_missing_extra_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(WamkitError, match=r"needs diffusers: pip install 'wamkit\[pretrained\]'"):
        gpu.main(gpu.Args("cpu", "tiny"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said():
    with pytest.raises(WamkitError, match="no GPU is found: choose --device cpu"):
        gpu.main(gpu.Args())
