"""DreamZero-5B, tiny and random: its network against a plain statement of it, under the names of its checkpoints."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from recordings import fill
from safetensors.torch import save_file

from conftest import random_batch
from lerobot_code import needs_lerobot, site
from tiny_video_models import HEADS, LAYERS, TEXT, Z, make_folder
from wamkit.cli.main import main
from wamkit.config import ConfigError
from wamkit.inference.model import load
from wamkit.nn.attention_mask import ACTION, FUTURE
from wamkit.nn.family_options import CascadeIDMConfig, UnifiedConfig
from wamkit.nn.options import BackboneConfig
from wamkit.runs.run import Run
from wamkit.types import Observation, Query

pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")

HEAD, A, S, H, HIDDEN, CLIP, ROBOTS, T = 12, 6, 5, 8, 20, 40, 3, 7
D = HEADS * HEAD
"""Size of a head, dimensions of an action and of the state, actions of a chunk, width of hidden layers, size of CLIP's
features, robots, tokens of a text, and width."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Wan's parts, with a CLIP beside them."""
    root = make_folder("wan", tmp_path_factory.mktemp("wan"))
    torch.manual_seed(3)
    sizes = {"hidden_size": CLIP, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(image_size=32, patch_size=16, **sizes)
    transformers.CLIPVisionModel(config).save_pretrained(root / "image_encoder")
    return root


def checkpoint() -> dict[str, torch.Tensor]:
    """Random weights under DreamZero's names, with parts that it has from Wan as it was released."""
    torch.manual_seed(0)
    shapes = {"patch_embedding": ((D, Z, 1, 2, 2), D), "head.head": ((4 * Z, D), 4 * Z)}
    shapes |= {"text_embedding.0": ((D, TEXT), D), "text_embedding.2": ((D, D), D)}
    shapes |= {
        "time_embedding.0": ((D, 32), D),
        "time_embedding.2": ((D, D), D),
        "time_projection.1": ((6 * D, D), 6 * D),
    }
    shapes |= {"img_emb.proj.0": ((CLIP,), CLIP), "img_emb.proj.1": ((CLIP, CLIP), CLIP)}
    shapes |= {"img_emb.proj.3": ((D, CLIP), D), "img_emb.proj.4": ((D,), D)}
    for i in range(LAYERS):
        for kind, maps in (("self_attn", "qkvo"), ("cross_attn", ("q", "k", "v", "o", "k_img", "v_img"))):
            shapes |= {f"blocks.{i}.{kind}.{m}": ((D, D), D) for m in maps}
        shapes |= {
            f"blocks.{i}.norm3": ((D,), D),
            f"blocks.{i}.ffn.0": ((48, D), 48),
            f"blocks.{i}.ffn.2": ((D, 48), D),
        }
    w = {}
    for name, (shape, bias) in shapes.items():
        w[f"{name}.weight"], w[f"{name}.bias"] = 0.3 * torch.randn(shape), 0.3 * torch.randn(bias)
    for i in range(LAYERS):
        norms = (
            "self_attn.norm_q",
            "self_attn.norm_k",
            "cross_attn.norm_q",
            "cross_attn.norm_k",
            "cross_attn.norm_k_img",
        )
        w |= {f"blocks.{i}.{n}.weight": 1 + 0.3 * torch.randn(D) for n in norms}
        w[f"blocks.{i}.modulation"] = 0.3 * torch.randn(1, 6, D)
    w["head.modulation"] = 0.3 * torch.randn(1, 2, D)
    for name, (inputs, outputs) in {
        "state_encoder.layer1": (S, HIDDEN),
        "state_encoder.layer2": (HIDDEN, D),
        "action_encoder.W1": (A, D),
        "action_encoder.W2": (2 * D, D),
        "action_encoder.W3": (D, D),
        "action_decoder.layer1": (D, HIDDEN),
        "action_decoder.layer2": (HIDDEN, A),
    }.items():
        w[f"{name}.W"], w[f"{name}.b"] = 0.3 * torch.randn(ROBOTS, inputs, outputs), 0.3 * torch.randn(ROBOTS, outputs)
    w = {f"action_head.model.{n}": x for n, x in w.items()}
    return w | {f"action_head.{n}": torch.zeros(2) for n in ("text_encoder.norm.weight", "vae.model.conv1.bias")}


TOLD = {
    "action_head_cfg": {
        "config": {
            "num_frame_per_block": 1,
            "num_action_per_block": H,
            "target_video_height": 32,
            "target_video_width": 64,
            "diffusion_model_cfg": {"text_len": T, "model_type": "ti2v"},
        }
    }
}


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    weights = checkpoint()
    half = len(weights) // 2
    for i, part in enumerate((list(weights.items())[:half], list(weights.items())[half:])):
        save_file(dict(part), folder / f"model-0000{i + 1}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(TOLD))
    (folder / "experiment_cfg").mkdir()
    low, high = [0.0, -2.0, 1.0], [2.0, 2.0, 1.0]
    state = {"joints": {"q01": [0.0, 0.0], "q99": [1.0, 2.0]}, "gripper": {"q01": [-1.0], "q99": [0.0]}}
    told = {"libero_sim": {"statistics": {"state": state, "action": {"actions": {"q01": low, "q99": high}}}}}
    (folder / "experiment_cfg" / "metadata.json").write_text(json.dumps(told))
    return folder


def words(released: Path, base: Path, out: Path, *more: str) -> list[str]:
    return ["import-weights", "dreamzero", str(released), "--out", str(out), "--base", str(base), *more]


@pytest.fixture(scope="module")
def run(released, base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert main(words(released, base, out, "--image-encoder", str(base), "--robot", "2")) == 0
    return out


def stated(w, z0, z, actions, state, text, clip, level):
    """Velocities of a video's latent frames and of actions, as DreamZero's code has them for a first chunk.

    z0, z: latents (B, Z, frames, 2 h, 2 w), of the present and noisy.   level: noise level in [0, 1].
    """
    w = {n.removeprefix("action_head.model."): x for n, x in w.items()}
    B, h, w_ = len(z), z.shape[3] // 2, z.shape[4] // 2
    lin = lambda n, x: F.linear(x, w[f"{n}.weight"], w[f"{n}.bias"])  # noqa: E731
    own = lambda n, x: x @ w[f"{n}.W"][2] + w[f"{n}.b"][2]  # noqa: E731
    tanh = lambda x: F.gelu(x, approximate="tanh")  # noqa: E731
    plain = lambda x: F.layer_norm(x, (D,), eps=1e-6)  # noqa: E731

    def rms(n, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w[f"{n}.weight"]

    def angles(position, size):
        return position[:, None] / 10_000.0 ** (torch.arange(0, size, 2).double() / size)

    def turned(x, angle):  # (B, L, D), pairs of a head's values as complex numbers
        pairs = torch.view_as_complex(x.double().reshape(B, x.shape[1], HEADS, HEAD // 2, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(2).float()

    def grid(frames):
        places = torch.meshgrid(frames.long(), torch.arange(h), torch.arange(w_), indexing="ij")
        f, y, x = (t.flatten().double() for t in places)
        side = 2 * (HEAD // 6)
        return torch.cat([angles(f, HEAD - 2 * side), angles(y, side), angles(x, side)], 1)

    def attend(q, k, v):
        heads = lambda t: t.unflatten(2, (HEADS, HEAD)).transpose(1, 2)  # noqa: E731
        y = (heads(q) @ heads(k).transpose(2, 3) / math.sqrt(HEAD)).softmax(-1) @ heads(v)
        return y.transpose(1, 2).flatten(2)

    def embedded(t):
        half = torch.exp(-math.log(10_000) * torch.arange(16) / 16)
        e = torch.cat([(t[..., None] * half).cos(), (t[..., None] * half).sin()], -1)
        e = lin("time_embedding.2", F.silu(lin("time_embedding.0", e)))
        return e, lin("time_projection.1", F.silu(e)).unflatten(2, (6, D))

    def tokens(z):
        return F.conv3d(z, w["patch_embedding.weight"], w["patch_embedding.bias"], stride=(1, 2, 2)).flatten(2).mT

    text = lin("text_embedding.2", tanh(lin("text_embedding.0", text)))
    image = F.layer_norm(clip, (CLIP,), w["img_emb.proj.0.weight"], w["img_emb.proj.0.bias"])
    image = lin("img_emb.proj.3", F.gelu(lin("img_emb.proj.1", image)))
    image = F.layer_norm(image, (D,), w["img_emb.proj.4.weight"], w["img_emb.proj.4.bias"])

    def block(i, x, mod, angle, seen):
        n = f"blocks.{i}"
        shift, scale, gate, shift2, scale2, gate2 = (w[f"{n}.modulation"][:, None] + mod).unbind(2)
        y = plain(x) * (1 + scale) + shift
        q = turned(rms(f"{n}.self_attn.norm_q", lin(f"{n}.self_attn.q", y)), angle)
        k = turned(rms(f"{n}.self_attn.norm_k", lin(f"{n}.self_attn.k", y)), angle)
        k, v = torch.cat([*seen[:1], k], 1), torch.cat([*seen[1:], lin(f"{n}.self_attn.v", y)], 1)
        x = x + gate * lin(f"{n}.self_attn.o", attend(q, k, v))
        q = F.layer_norm(x, (D,), w[f"{n}.norm3.weight"], w[f"{n}.norm3.bias"], 1e-6)
        q = rms(f"{n}.cross_attn.norm_q", lin(f"{n}.cross_attn.q", q))
        read = attend(q, rms(f"{n}.cross_attn.norm_k", lin(f"{n}.cross_attn.k", text)), lin(f"{n}.cross_attn.v", text))
        k_image = rms(f"{n}.cross_attn.norm_k_img", lin(f"{n}.cross_attn.k_img", image))
        x = x + lin(f"{n}.cross_attn.o", read + attend(q, k_image, lin(f"{n}.cross_attn.v_img", image)))
        y = lin(f"{n}.ffn.2", tanh(lin(f"{n}.ffn.0", plain(x) * (1 + scale2) + shift2)))
        return x + gate2 * y, (k, v)

    x0, seen = tokens(z0), []
    _, mod0 = embedded(torch.zeros(B, x0.shape[1]))
    for i in range(LAYERS):
        x0, kept = block(i, x0, mod0, grid(torch.zeros(1)), ())
        seen.append(kept)
    t = 1000 * level
    half = torch.exp(-math.log(10_000) * torch.arange(D // 2) / (D // 2))
    sines = torch.cat([(t * half).sin(), (t * half).cos()]).expand(B, H, D)
    acts = own("action_encoder.W2", torch.cat([own("action_encoder.W1", actions), sines], -1))
    acts = own("action_encoder.W3", acts * acts.sigmoid())
    told = own("state_encoder.layer2", own("state_encoder.layer1", state).relu()).unsqueeze(1)
    video = tokens(z)
    x = torch.cat([video, acts, told], 1)
    number = torch.cat([torch.arange(H), torch.zeros(1)]).double()
    angle = torch.cat([grid(torch.arange(1, 1 + z.shape[2])), angles(number, HEAD)])
    e, mod = embedded(torch.full((B, x.shape[1]), t))
    for i in range(LAYERS):
        x, _ = block(i, x, mod, angle, seen[i])
    L = video.shape[1]
    shift, scale = (w["head.modulation"][:, None] + e[:, :L, None]).unbind(2)
    v_z = (
        lin("head.head", plain(x[:, :L]) * (1 + scale) + shift)
        .unflatten(2, (2, 2, Z))
        .permute(0, 1, 4, 2, 3)
        .flatten(2)
    )
    v_a = own("action_decoder.layer2", own("action_decoder.layer1", x[:, L : L + H]).relu())
    return v_z, v_a


def test_a_step_is_that_of_dreamzero(run):
    """Video, actions and state at one noise level, over a clean present, a text and CLIP's features."""
    family, spec = Run.open(run).family(), Run.open(run).spec
    batch, level = random_batch(spec, 2), 0.35
    batch.text[:] = ["push the red button", "open the drawer"]
    g = torch.Generator().manual_seed(4)
    z, x = torch.randn(2, 1 * 2, 4 * Z, generator=g), torch.randn(2, H, A, generator=g)
    with torch.no_grad():
        context, features, _ = family._read(batch)
        sigma = {n: torch.full((2,), level) for n in (FUTURE, ACTION)}
        ours = family._velocity({FUTURE: z, ACTION: x}, sigma, context, features, batch)
        model = family.context.model
        present = model.autoencoder.encode(torch.cat(list(batch.obs.unbind(1)), -1).unsqueeze(2) / 127.5 - 1)
        latents = z.view(2, 1, 1, 2, Z, 1, 2, 2).permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(2, Z, 1, 2, 4)
        text = model.prompts(T, family.config.backbone.prompt)(batch.text, torch.device("cpu"))
        state = family.normalizer.encode("proprio", batch.proprio)
        clip = model.image_features(batch.obs)
        theirs = stated(checkpoint(), present, latents, x, state, text, clip, level)
    for got, want in zip((ours[FUTURE], ours[ACTION]), theirs, strict=True):
        assert (got - want).abs().max() < 2e-5 * want.std()


def test_features_of_an_image_are_those_of_transformers_clip(base, run):
    """At CLIP's own size, where nothing is resized: the last block but one, of images as its processor has them."""
    images = torch.randint(0, 256, (2, 1, 3, 32, 32), dtype=torch.uint8)
    got = Run.open(run).family().context.model.image_features(images)
    processor = transformers.CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False, do_resize=False)
    given = processor(list(images[:, 0].permute(0, 2, 3, 1).numpy()), return_tensors="pt")
    encoder = transformers.CLIPVisionModel.from_pretrained(base / "image_encoder").eval()
    with torch.no_grad():
        want = encoder(**given, output_hidden_states=True).hidden_states[-2]
    assert (got - want).abs().max() < 1e-5 and got.shape == (2, 5, CLIP)


@needs_lerobot
def test_embeddings_of_actions_are_groots(run):
    """Against LeRobot's GR00T, whose embeddings DreamZero has."""
    file = site() / "lerobot/policies/groot/groot_n1_7.py"
    names = {"CategorySpecificLinear", "SinusoidalPositionalEncoding", "swish", "MultiEmbodimentActionEncoder"}
    tree = ast.parse(file.read_text())
    tree.body = [n for n in tree.body if getattr(n, "name", "") in names]
    space = {"nn": torch.nn, "torch": torch, "F": F}
    exec(compile(tree, str(file), "exec"), space)
    theirs = space["MultiEmbodimentActionEncoder"](A, D, ROBOTS)
    theirs.load_state_dict(
        {n.partition("action_encoder.")[2]: x for n, x in checkpoint().items() if "action_encoder" in n}
    )
    x, sigma = torch.randn(2, H, A), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        want = theirs(x, 1000 * sigma, torch.tensor([2, 2]))
        got = Run.open(run).family().action.stream.embed(x, sigma)
    assert (got - want).abs().max() < 1e-5


def test_a_run_acts_and_imagines_in_the_units_of_its_robot(run):
    model = load(run)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8).numpy()
    state = torch.randn(S).numpy()
    answer = model.sample(Observation(images, state, "push the red button"), Query.JOINT, seed=1)
    assert answer.actions.shape == (H, A) and answer.future.shape == (4, 2, 3, 32, 32)
    family = Run.open(run).family()
    assert family.normalizer.mean_action.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # q01 and q99, three of six
    assert family.normalizer.std_action.tolist() == [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    assert family.normalizer.mean_proprio.tolist() == [0.5, 1.0, -0.5, 0.0, 0.0]


def test_the_state_reaches_the_actions(run):
    """Through its token beside them."""
    model = load(run)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8).numpy()
    acts = [model.sample(Observation(images, s.numpy(), "open"), "joint", seed=1).actions for s in torch.randn(2, S)]
    assert abs(acts[0] - acts[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("action_head.model.head.modulation"), "lack trunk._all.parts.future.model.scale_shift_table"),
        (lambda w: w.update({"action_head.model.registers": torch.zeros(1)}), "registers has no place"),
        (lambda w: [w.pop(n) for n in list(w) if "_img" in n], "no image branch"),
        (lambda w: [w.pop(n) for n in list(w) if "action_decoder" in n], "not DreamZero's"),
    ],
)
def test_other_weights_are_refused(base, tmp_path, capsys, change, said):
    weights = checkpoint()
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(TOLD))
    assert main(words(tmp_path, base, tmp_path / "run", "--image-encoder", str(base))) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_robot_too_many_is_refused(released, base, tmp_path, capsys):
    assert main(words(released, base, tmp_path / "run", "--image-encoder", str(base), "--robot", "3")) == 1
    assert "--robot is 3" in capsys.readouterr().err


def test_a_folder_without_clip_is_refused(released, base, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    assert main(words(released, base, tmp_path / "run", "--image-encoder", str(tmp_path / "other"))) == 1
    assert "image_encoder/config.json" in capsys.readouterr().err


def test_a_run_is_trained_on_from_it(run, tmp_path, capsys):
    """Its weights are those of the run, and released ones, which have no image branch, are not asked for."""
    fill(tmp_path / "data", 3)
    words = ["train", "--from", str(run), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "tuned")]
    assert main([*words, "--train.steps", "1", "--train.batch-size", "2", "--train.threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "starts from" in said
    before, after = Run.open(run).family(), Run.open(tmp_path / "tuned").family()
    name = "trunk._all.parts.future.model.blocks.0.attn2.add_k_proj.weight"
    assert (before.get_parameter(name) - after.get_parameter(name)).abs().max() < 1e-3


@pytest.mark.parametrize("options", [{"state": "action"}, {"action_encoder": "groot", "projector": 8}])
def test_families_without_actions_beside_the_video_have_no_embeddings_of_them(base, options):
    backbone = BackboneConfig("wan", str(base), **options)
    for name, kind in (("cascade_idm", CascadeIDMConfig), ("unified", UnifiedConfig)):
        given = backbone if name == "cascade_idm" else dataclasses.replace(backbone, path="")
        with pytest.raises(ConfigError, match="are for actions beside a pretrained video model"):
            kind(backbone=given)


def test_damaged_statistics_are_named(released, base, tmp_path, capsys):
    shutil.copytree(released, tmp_path / "theirs")
    file = tmp_path / "theirs" / "experiment_cfg" / "metadata.json"
    told = json.loads(file.read_text())
    told["libero_sim"]["statistics"]["state"]["joints"]["q01"] = [0.0] * 9
    file.write_text(json.dumps(told))
    assert main(words(tmp_path / "theirs", base, tmp_path / "run", "--image-encoder", str(base))) == 1
    assert "metadata.json" in capsys.readouterr().err
