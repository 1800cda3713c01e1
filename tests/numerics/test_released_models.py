"""Networks of released World Action Models, tiny and random, against the code that they are released with.

That code is LeRobot's, which needs another Python and another torch than wamkit. Its folders are read by themselves;
`pip install --no-deps --ignore-requires-python --target build/lerobot lerobot==0.6.1 einops` puts them there.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lerobot_code import needs_lerobot, site
from tiny_video_models import HEADS, LAYERS, TEXT, make_folder
from wamkit.cli.main import main
from wamkit.inference.model import load
from wamkit.nn.attention_mask import ACTION, FUTURE
from wamkit.nn.attention_mask import TEXT as WORDS
from wamkit.nn.backbones.base import Tokens
from wamkit.nn.backbones.wan import grid_positions, patches
from wamkit.runs.run import Run
from wamkit.types import Observation

pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")
pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")

HEAD, Z, A, S, H = 12, 48, 4, 5, 8
"""Size of a head, channels of a latent, dimensions of an action and of the state, actions of a chunk."""


@pytest.fixture
def lerobot(monkeypatch):
    """LeRobot's policies without its own imports, which ask for another Python."""

    def stub(name: str, path: Path | None = None, **content) -> None:
        module = types.ModuleType(name)
        if path is not None:
            module.__path__ = [str(path)]
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)

    monkeypatch.syspath_prepend(site())  # for einops
    root = site() / "lerobot"
    for name in ("", "policies", "policies.fastwam", "policies.lingbot_va", "utils"):
        stub("lerobot" + (f".{name}" if name else ""), root.joinpath(*name.split(".")))
    said = {"_diffusers_available": True, "_transformers_available": True, "require_package": lambda *a, **k: None}
    stub("lerobot.utils.import_utils", **said)
    import transformers

    if not hasattr(transformers, "T5TokenizerFast"):
        monkeypatch.setattr(transformers, "T5TokenizerFast", transformers.PreTrainedTokenizerFast, raising=False)
    yield
    for name in [n for n in sys.modules if n.startswith("lerobot")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    """With latents of 48 channels, which LeRobot's code has for granted."""
    return make_folder("wan", tmp_path_factory.mktemp("wan"), z=Z)


def fastwam_core(wan: Path):
    """A tiny Fast-WAM with random weights, over the autoencoder and the text encoder of `wan`."""
    from diffusers import AutoencoderKLWan
    from lerobot.policies.fastwam.wan.adapters import WanVideoVAE38
    from lerobot.policies.fastwam.wan.components import WanTextEncoder, WanTokenizer
    from lerobot.policies.fastwam.wan.modular import ActionDiT, FastWAM, MoT
    from lerobot.policies.fastwam.wan.video_dit import WanVideoDiT
    from transformers import UMT5EncoderModel

    torch.manual_seed(0)
    sizes = {"text_dim": TEXT, "eps": 1e-6, "num_heads": HEADS, "attn_head_dim": HEAD, "num_layers": LAYERS}
    video = WanVideoDiT(
        hidden_dim=HEADS * HEAD,
        in_dim=Z,
        out_dim=Z,
        ffn_dim=48,
        freq_dim=32,
        patch_size=(1, 2, 2),
        seperated_timestep=True,
        fuse_vae_embedding_in_latents=True,
        video_attention_mask_mode="first_frame_causal",
        action_dim=A,
        **sizes,
    )
    action = ActionDiT(hidden_dim=20, action_dim=A, ffn_dim=40, freq_dim=32, **sizes)
    mot = MoT({"video": video, "action": action}, mot_checkpoint_mixed_attn=False).eval()
    with torch.no_grad():
        for p in mot.parameters():
            p.copy_(0.2 * torch.randn(p.shape))
    full = {"dtype": torch.float32, "device": "cpu"}
    vae = WanVideoVAE38(pretrained=AutoencoderKLWan.from_pretrained(wan / "vae"), **full)
    words = WanTextEncoder(pretrained=UMT5EncoderModel.from_pretrained(wan / "text_encoder"), **full)
    core = FastWAM(
        video,
        action,
        mot,
        vae,
        words,
        WanTokenizer(str(wan / "tokenizer"), 12),
        TEXT,
        proprio_dim=S,
        device="cpu",
        torch_dtype=torch.float32,
        video_infer_shift=5.0,
        action_infer_shift=5.0,
    ).eval()
    core.proprio_encoder.weight.data.normal_()
    return core


TOLD = {
    "type": "fastwam",
    "action_horizon": H,
    "num_video_frames": H + 1,
    "action_video_freq_ratio": 1,
    "image_size": [32, 64],
    "tokenizer_max_len": 12,
    "num_inference_steps": 10,
    "prompt_template": "A video of: {task}",
    "input_features": {"observation.images.wrist": {}, "observation.images.front": {}, "observation.state": {}},
    "normalization_mapping": {"STATE": "MIN_MAX", "ACTION": "MEAN_STD"},
}


def save_fastwam(weights: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """A folder as LeRobot writes it, with statistics, which are returned."""
    folder.mkdir()
    save_file({f"model.{n}": x.contiguous().clone() for n, x in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TOLD))
    g = torch.Generator().manual_seed(7)
    draw = lambda n: torch.randn(n, generator=g)  # noqa: E731
    low = draw(S)
    statistics = {
        "observation.state.min": low,
        "observation.state.max": low + 1 + draw(S).abs(),
        "action.mean": draw(A),
        "action.std": 0.5 + draw(A).abs(),
    }
    save_file(statistics, folder / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    return statistics


def imported_fastwam(wan: Path, home: Path):
    """LeRobot's network and statistics; the run made of them is in the folder `run`."""
    core = fastwam_core(wan)
    kept = {n: x for n, x in core.state_dict().items() if not n.startswith(("vae", "text_encoder"))}
    statistics = save_fastwam(kept, home / "released")
    words = ["import-weights", "fastwam", str(home / "released"), "--out", str(home / "run"), "--base", str(wan)]
    assert main(words) == 0
    return core, statistics


@needs_lerobot
def test_a_whole_policy_of_fastwam_acts_as_lerobot_has_it(lerobot, wan, tmp_path):
    """From images to actions in the robot's units: the same weights, the same seed."""
    core, statistics = imported_fastwam(wan, tmp_path)
    rng = np.random.default_rng(0)
    images, state = rng.integers(0, 256, (2, 3, 32, 32), np.uint8), rng.standard_normal(S).astype(np.float32)
    ours = load(tmp_path / "run").sample(Observation(images, state, "push the red button"), "policy", seed=42)
    low, high = (statistics[f"observation.state.{k}"] for k in ("min", "max"))
    with torch.no_grad():
        theirs = core.infer_action(
            prompt=[TOLD["prompt_template"].format(task="push the red button")],
            input_image=torch.from_numpy(np.concatenate(list(images), -1))[None] / 255,
            action_horizon=H,
            proprio=(2 * (torch.from_numpy(state) - low) / (high - low) - 1)[None],
            num_inference_steps=10,
            seed=42,
        )["action"]
    theirs = theirs * statistics["action.std"] + statistics["action.mean"]
    assert np.abs(ours.actions - theirs.numpy()).max() < 1e-4 < theirs.std()


@needs_lerobot
def test_a_training_pass_of_fastwam_is_lerobots(lerobot, wan, tmp_path):
    """Velocities of a noisy future, and of noisy actions beside it."""
    core, _ = imported_fastwam(wan, tmp_path)
    family = Run.open(tmp_path / "run").family()
    B, F, h, w = 2, 3, 1, 2
    z, acts = torch.randn(B, Z, F, 2 * h, 2 * w), torch.randn(B, H, A)
    text, state = torch.randn(B, 12, TEXT), torch.randn(B, S)
    t_v, t_a = torch.tensor([350.0, 800.0]), torch.tensor([500.0, 120.0])
    with torch.no_grad():
        words, mask = core._append_proprio_to_context(text, torch.ones(B, 12, dtype=torch.bool), state)
        inputs = {"context": words, "context_mask": mask, "action": None, "fuse_vae_embedding_in_latents": True}
        targets = {"latents": z, "timestep_video": t_v, "noisy_action": acts, "timestep_action": t_a}
        want_v, want_a = core._run_training_mot(inputs, targets)
        p, cells = patches(z, (1, 2, 2)), h * w
        context = [Tokens(p[:, :cells], "image", grid_positions(torch.zeros(1), h, w)), Tokens(words, WORDS)]
        future = Tokens(p[:, cells:], FUTURE, grid_positions(torch.arange(1, F), h, w), t_v / 1000)
        action = family.action.stream.tokens(acts, t_a / 1000)
        K, L = cells + 13, (F - 1) * cells
        see = torch.ones(K + L + H, K + L + H, dtype=torch.bool)
        see[:K, K:] = see[K : K + L, K + L :] = see[K + L :, K : K + L] = False
        masks = {FUTURE: see[: K + L], ACTION: see[K + L :]}
        y, _ = family.experts({FUTURE: [*context, future], ACTION: [action]}, masks)
        got_a = family.action.stream.velocity(y[ACTION][0])
    want_v = patches(want_v, (1, 2, 2))[:, cells:]
    for ours, theirs in ((y[FUTURE][2], want_v), (got_a, want_a)):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.std()


@needs_lerobot
def test_chunks_of_lingbot_are_lerobots(lerobot, wan, tmp_path):
    """A clean chunk that is kept, then noisy actions and a noisy next chunk that look at it."""
    from lerobot.policies.lingbot_va.utils import WanTransformer3DModel, get_mesh_id

    torch.manual_seed(0)
    sizes = {"num_attention_heads": HEADS, "attention_head_dim": HEAD, "in_channels": Z, "out_channels": Z}
    them = WanTransformer3DModel(
        action_dim=A, text_dim=TEXT, freq_dim=32, ffn_dim=48, num_layers=LAYERS, **sizes
    ).eval()
    with torch.no_grad():
        for p in them.parameters():
            p.copy_(0.2 * torch.randn(p.shape))
    folder = tmp_path / "released"
    folder.mkdir()
    save_file(
        {f"transformer.{n}": x.contiguous().clone() for n, x in them.state_dict().items()}, folder / "model.safetensors"
    )
    told = {"type": "lingbot_va", "frame_chunk_size": 2, "action_per_frame": 4, "height": 64, "width": 32}
    told |= {"used_action_channel_ids": [2, 0], "max_sequence_length": 5, "wan_pretrained_path": str(wan)}
    (folder / "config.json").write_text(json.dumps(told))
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 1.0])
    save_file(
        {"action.q01": low, "action.q99": high},
        folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
    )
    assert main(["import-weights", "lingbot_va", str(folder), "--out", str(tmp_path / "run")]) == 0
    family = Run.open(tmp_path / "run").family()
    assert family.normalizer.mean_action.tolist() == [0.5, 0.0, 1.0, 0.0]  # of the dimensions that its robot uses
    assert family.normalizer.std_action.tolist() == [0.5, 1.0, 2.0, 1.0]
    B, f, h, w, n = 2, 2, 2, 2, 4
    z0, z1 = torch.randn(B, Z, f, 2 * h, 2 * w), torch.randn(B, Z, f, 2 * h, 2 * w)
    acts, text = torch.randn(B, A, f, n, 1), torch.randn(B, 5, TEXT)

    def ask(x, t, start, action, update):
        grid = get_mesh_id(f, n if action else h, 1 if action else w, int(action), f_shift=start, action=action)
        given = {
            "noisy_latents": x,
            "text_emb": text,
            "grid_id": grid[None].repeat(B, 1, 1),
            "timesteps": torch.full((B, f), t),
        }
        return them(given, update_cache=update, action_mode=action)

    def video(z, level, start):
        return Tokens(
            patches(z, (1, 2, 2)), FUTURE, grid_positions(torch.arange(start, start + f), h, w), torch.tensor([level])
        )

    with torch.no_grad():
        them.create_empty_cache("pos", 8, f * h * w, f * n, "cpu", torch.float32, B)
        want = ask(z0, 0.0, 0, False, 2), ask(acts, 600.0, 1, True, 0), ask(z1, 300.0, f, False, 0)
        (first, _), cache = family.trunk([video(z0, 0.0, 0), Tokens(text, WORDS)])
        flat = acts.permute(0, 2, 3, 4, 1).flatten(1, 3)
        (ours,), _ = family.trunk([family.action.stream.tokens(flat, torch.tensor([0.6]))], None, cache)
        (then,), _ = family.trunk([video(z1, 0.3, f)], None, cache)
        order = lambda y: y.unflatten(-1, (Z, 2, 2)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # noqa: E731
        got = order(first), family.action.stream.velocity(ours), order(then)
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.std()
