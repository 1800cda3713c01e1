"""Released weights as runs: every tensor finds its place, and what does not fit is named."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_video_models import make_folder
from wamkit.cli.main import main
from wamkit.inference.model import load
from wamkit.nn.family_options import MoTConfig
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import BackboneConfig, Program
from wamkit.runs.config import family_class
from wamkit.runs.foreign import fastwam, lingbot_va
from wamkit.runs.run import Run
from wamkit.types import Observation, Spec

pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")
pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")

SPEC = Spec(("image",), 32, 32, 5, 4, chunk=8, frame_offsets=tuple(range(1, 9)), fps=20.0)
TOLD = {"action_horizon": 8, "num_video_frames": 9, "action_video_freq_ratio": 1, "image_size": [32, 32]}
RELEASE = "mot.mixtures.{s}.blocks.{i}.{part}"
LEROBOT = "model.mot.layers.{i}.blocks.{s}.{part}"


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    return make_folder("wan", tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def network(wan):
    """Fast-WAM's network as wamkit has it, with random weights."""
    return made(wan)


def made(wan: Path, projector: int = 0):
    options = {"text_length": 6, "state": "text", "action_rope": "index", "expert_mlp": 24, "projector": projector}
    backbone = BackboneConfig("wan", str(wan), **options)
    config = MoTConfig(backbone=backbone, program=Program.DECOUPLED, actions_per_token=1, action_width=16)
    numbers = {"proprio": (torch.zeros(5), torch.ones(5)), "action": (torch.zeros(4), torch.ones(4))}
    torch.manual_seed(3)
    return family_class("mot")(config, SPEC, Normalizer(numbers))


def their_names(block: str) -> dict[str, str]:
    """Our name -> theirs, for every tensor of a model of two blocks."""
    out = {}
    for theirs, ours in fastwam.STREAMS.items():
        for i in range(2):
            out |= {
                f"experts.parts.{ours}.model.blocks.{i}.{b}": block.format(s=theirs, i=i, part=a)
                for a, b in fastwam.BLOCK.items()
            }
        prefix = f"mot.mixtures.{theirs}."
        out |= {f"experts.parts.{ours}.model.{b}": prefix + a for a, b in fastwam.OUTER.items()}
        inside = "experts.parts.future.model." if ours == "future" else ""
        out |= {inside + b: prefix + a for a, b in fastwam.HEADS[ours].items()}
    return out | {"context.proprio": "proprio_encoder"}


def released(network, folder: Path, block: str = RELEASE, **changes: torch.Tensor | None) -> Path:
    """A folder with the network under the names of a release. changes: other tensors by their names; None for none."""
    names, tensors = their_names(block), {}
    for name, x in network.state_dict().items():
        if not name.startswith("normalizer."):
            stem, dot, end = name.rpartition(".")
            theirs = names.get(name) or names[stem] + dot + end
            tensors[theirs] = x.clone().contiguous()
    tensors = {n: x for n, x in {**tensors, **changes}.items() if x is not None}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**TOLD, "tokenizer_max_len": 6}))
    return folder


def imported(folder: Path, wan: Path, out: Path, name: str = "fastwam") -> int:
    return main(["import-weights", name, str(folder), "--out", str(out), "--base", str(wan)])


@pytest.mark.parametrize("block", [RELEASE, LEROBOT], ids=["release", "lerobot"])
def test_every_tensor_of_either_layout_finds_its_place(network, wan, tmp_path, block, capsys):
    assert imported(released(network, tmp_path / "theirs", block), wan, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "the family mot" in said and "note: no statistics came with the weights" in said
    run = Run.open(tmp_path / "run")
    own = {n: x for n, x in network.state_dict().items() if not n.startswith("normalizer.")}
    assert all(torch.equal(run.weights()[n], x) for n, x in own.items())
    assert (run.config.model.program, run.config.model.policy_steps) == (Program.DECOUPLED, 10)
    image, state = np.zeros((1, 3, 32, 32), np.uint8), np.zeros(5, np.float32)
    model = load(tmp_path / "run")
    sample = model.sample(Observation(image, state, "open the drawer"), "policy", seed=1)
    assert sample.actions.shape == (8, 4) and np.isfinite(sample.actions).all()
    assert {"policy", "video", "joint"} <= {str(q) for q in model.queries}


def test_easywam_embeds_actions_and_state_by_two_layers(wan, tmp_path, monkeypatch):
    """By the names of its public code, which was not run."""
    network = made(wan, projector=10)
    names = their_names(RELEASE)
    del names["context.proprio"], names["action.stream.embed"], names["action.stream.head"]
    for k in "02":
        names |= {f"context.proprio.{k}": f"state_encoder.net.{k}"}
        names |= {f"action.stream.embed.{k}": f"mot.mixtures.action.action_encoder.net.{k}"}
        names |= {f"action.stream.head.{k}": f"mot.mixtures.action.action_decoder.net.{k}"}
    monkeypatch.setattr(sys.modules[__name__], "their_names", lambda block: names)
    assert imported(released(network, tmp_path / "theirs"), wan, tmp_path / "run", "easywam") == 0
    run = Run.open(tmp_path / "run")
    own = {n: x for n, x in network.state_dict().items() if not n.startswith("normalizer.")}
    assert all(torch.equal(run.weights()[n], x) for n, x in own.items())
    assert run.config.model.backbone.projector == 10 and run.config.model.action_width == 16
    image, state = np.zeros((1, 3, 32, 32), np.uint8), np.zeros(5, np.float32)
    assert load(tmp_path / "run").sample(Observation(image, state, "open"), "policy", seed=1).actions.shape == (8, 4)


def test_a_run_of_released_weights_is_where_training_starts(network, wan, tmp_path):
    from recordings import fill

    assert imported(released(network, tmp_path / "theirs"), wan, tmp_path / "run") == 0
    fill(tmp_path / "data", 3)
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "next"), "--train.steps", "2"]
    words += ["--train.batch-size", "2", "--train.threads", "1", "--train.optimizer", "adamw"]
    assert main(["train", "--from", str(tmp_path / "run"), *words]) == 0
    assert Run.open(tmp_path / "next").step == 2


def test_what_does_not_fit_is_named(network, wan, tmp_path, capsys):
    def refused(folder: Path, name: str = "fastwam", base: Path = wan) -> str:
        capsys.readouterr()
        assert imported(folder, base, tmp_path / "none", name) == 1
        message = capsys.readouterr().err
        assert len(message.strip().splitlines()) == 1 and not (tmp_path / "none").exists()
        return message

    some = {"mot.mixtures.video.blocks.0.ffn.2.bias": None}
    assert "the weights lack experts.parts.future.model.blocks.0.ffn.net.2.bias" in refused(
        released(network, tmp_path / "a", **some)
    )
    assert "value_head.weight has no place in a run" in refused(
        released(network, tmp_path / "b", **{"value_head.weight": torch.zeros(2)})
    )
    assert "model.patch_embedding.weight has shape (24, 4, 1, 2, 2), and" in refused(
        released(network, tmp_path / "c"), base=make_folder("wan", tmp_path / "other", z=6)
    )
    assert "not LingBot-VA" in refused(other_type(released(network, tmp_path / "d")), "lingbot_va")
    assert "unknown released model 'fastvam' (did you mean 'fastwam'?)" in refused(tmp_path / "c", "fastvam")
    assert "there is no folder" in refused(tmp_path / "nothing")
    for number, wrong in enumerate(({"action_video_freq_ratio": 0}, {"image_size": None}, {"action_horizon": "8"})):
        folder = released(network, tmp_path / f"wrong{number}")
        (folder / "config.json").write_text(json.dumps({**TOLD, **wrong}))
        assert str(folder) in refused(folder)


def other_type(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({**TOLD, "type": "fastwam"}))
    return folder


def test_a_pickle_is_never_read_and_the_converter_runs_no_code(network, wan, tmp_path, capsys):
    folder = released(network, tmp_path / "theirs")
    torch.save({"mot": load_file(folder / "model.safetensors"), "step": 3}, folder / "weights.pt")
    (folder / "model.safetensors").unlink()
    assert imported(folder, wan, tmp_path / "run") == 1
    message = capsys.readouterr().err
    assert "weights.pt is a pickle, which is never read: tools/from_pickle.py" in message
    tool = [sys.executable, str(Path(__file__).parents[2] / "tools/from_pickle.py")]
    done = subprocess.run([*tool, str(folder / "weights.pt")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(n.startswith("mot.") for n in load_file(folder / "weights.safetensors"))

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"x": Evil()}))
    done = subprocess.run([*tool, str(tmp_path / "evil.pt")], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "evil.pt is refused" in done.stderr and not (tmp_path / "pwned").exists()


def test_the_guide_is_followed(network, wan, tmp_path, monkeypatch):
    """Its commands, with tiny models in place of those on the Hub."""
    from recordings import fill

    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "data" / "mine", 3)
    released(network, tmp_path / "theirs")
    page = (Path(__file__).parents[2] / "docs/pretrained.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", page, re.M | re.S)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("wamkit ")]
    small = f"--model.backbone.path {wan} --model.backbone.text-length 6 --model.action-width 16 --train.steps 2 "
    small += "--model.backbone.expert-mlp 24 --train.batch-size 2 --train.threads 1 --train.device cpu --size 32 32 "
    small += "--window.chunk 4 --window.frame-offsets 1 2 3 4"
    done = []
    for line in commands:
        words = shlex.split(line)[1:]
        if words[0] == "train":
            words += small.split()
        if words[0] == "show":
            continue  # tests/unit/test_recipes.py has what it says
        if words[1] in ("lingbot_va", "dreamzero"):
            continue  # tests/numerics, with weights of their own
        if words[0] == "import-weights":
            words = [*words[:2], str(tmp_path / "theirs"), *words[3:], "--base", str(wan)]
        assert main(words) == 0, line
        done.append(words[0])
    assert done == ["train", "train", "export", "import-weights"]
    assert Run.open("adapted.safetensors").config.model.backbone.lora.rank == 0
    options = {f"--model.backbone.{name.replace('_', '-')}" for name in BackboneConfig.__dataclass_fields__}
    named = set(re.findall(r"--model\.backbone\.[a-z-]+", page))
    assert named == options, "an option is missing in the guide, or not there"


def test_names_of_lingbot_that_no_forward_pass_reads_are_known():
    assert lingbot_va.our_name("condition_embedder.time_proj.weight").endswith(
        "model.condition_embedder.time_proj.weight"
    )
    assert lingbot_va.our_name("value_head.weight") is None
