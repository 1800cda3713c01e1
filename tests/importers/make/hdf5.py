"""Writes small HDF5 files into tests/importers/data/hdf5 with the calls of the formats' own writers, from their code:

robomimic.hdf5      robomimic 0.3.0, scripts/dataset_states_to_obs.py (and split_train_val.py for the mask)
libero_demo.hdf5    LIBERO, scripts/create_dataset.py
episode_0.hdf5      ALOHA, record_episodes.py (simulated and real alike)
episode_1.hdf5      Mobile ALOHA, with base actions; its images are JPEG, padded to the longest
maniskill.h5, .json ManiSkill 3, mani_skill/utils/wrappers/record.py, observations "rgb", control pd_ee_delta_pos

The packages themselves need simulators and robots. The grey of an image is 10 times the number of its row.

    python tests/importers/make/hdf5.py
"""

import json
from pathlib import Path

import h5py
import numpy as np
from imagecodecs import jpeg_encode

OUT = Path(__file__).parents[1] / "data/hdf5"
OUT.mkdir(parents=True, exist_ok=True)


def pictures(first: int, T: int, size: tuple[int, int], rng: np.random.Generator, corner: bool = False) -> np.ndarray:
    """Grey 10 t with a little grain; with `corner` the upper left quarter is red, to tell how an image was turned."""
    out = (10 * (first + np.arange(T)))[:, None, None, None] + rng.integers(0, 4, (T, *size, 3))
    out = out.astype(np.uint8)
    if corner:
        out[:, : size[0] // 2, : size[1] // 2] = (220, 10, 10)
    return out


def robomimic() -> None:
    rng = np.random.default_rng(1)
    with h5py.File(OUT / "robomimic.hdf5", "w") as f_out:
        data_grp = f_out.create_group("data")
        total = 0
        for i in (0, 2, 10):
            T = 6 + i % 3
            ep = data_grp.create_group(f"demo_{i}")
            ep.create_dataset("actions", data=rng.uniform(-1, 1, (T, 7)))
            ep.create_dataset("states", data=rng.normal(size=(T, 32)))
            ep.create_dataset("rewards", data=np.r_[np.zeros(T - 1), 1.0])
            ep.create_dataset("dones", data=np.r_[np.zeros(T - 1, np.int64), 1])
            obs = {
                "agentview_image": pictures(0, T, (16, 16), rng),
                "robot0_eye_in_hand_image": pictures(1, T, (16, 16), rng),
                "robot0_eef_pos": np.c_[np.arange(T) / 100, rng.normal(size=(T, 2))],
                "robot0_eef_quat": rng.normal(size=(T, 4)),
                "robot0_gripper_qpos": rng.normal(size=(T, 2)),
                "object": rng.normal(size=(T, 10)),
            }
            for k, v in obs.items():
                ep.create_dataset(f"obs/{k}", data=v, compression="gzip")
                ep.create_dataset(f"next_obs/{k}", data=np.concatenate([v[1:], v[-1:]]), compression="gzip")
            ep.attrs["model_file"] = "<mujoco/>"
            ep.attrs["num_samples"] = T
            total += T
        f_out.create_dataset("mask/train", data=np.array(["demo_0", "demo_10"], dtype="S"))
        data_grp.attrs["total"] = total
        data_grp.attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": ["Panda"], "control_freq": 20}}, indent=4
        )


def libero() -> None:
    rng = np.random.default_rng(2)
    with h5py.File(OUT / "libero_demo.hdf5", "w") as h5py_f:
        grp = h5py_f.create_group("data")
        grp.attrs["env_name"] = "Libero_Kitchen_Tabletop_Manipulation"
        grp.attrs["problem_info"] = json.dumps(
            {"problem_name": "libero_kitchen", "domain_name": "robosuite", "language_instruction": "turn on the stove"}
        )
        grp.attrs["macros_image_convention"] = "opengl"
        grp.attrs["bddl_file_name"] = "stove.bddl"
        grp.attrs["bddl_file_content"] = "(define)"
        grp.attrs["env_args"] = json.dumps({"type": 1, "env_name": "Libero", "env_kwargs": {"control_freq": 20}})
        for i in range(2):
            T = 7 + i
            ep = grp.create_group(f"demo_{i}")
            obs = ep.create_group("obs")
            obs.create_dataset("gripper_states", data=rng.normal(size=(T, 2)))
            obs.create_dataset("joint_states", data=rng.normal(size=(T, 7)))
            obs.create_dataset("ee_states", data=rng.normal(size=(T, 6)))
            obs.create_dataset("ee_pos", data=np.c_[np.arange(T) / 100, rng.normal(size=(T, 2))])
            obs.create_dataset("ee_ori", data=rng.normal(size=(T, 3)))
            obs.create_dataset("agentview_rgb", data=pictures(0, T, (32, 32), rng, corner=True), compression="gzip")
            obs.create_dataset("eye_in_hand_rgb", data=pictures(1, T, (32, 32), rng), compression="gzip")
            ep.create_dataset("actions", data=np.c_[np.arange(T) / 10, rng.uniform(-1, 1, (T, 6))])
            ep.create_dataset("states", data=rng.normal(size=(T, 20)))
            ep.create_dataset("robot_states", data=rng.normal(size=(T, 9)))
            ep.create_dataset("rewards", data=np.r_[np.zeros(T - 1, np.uint8), np.uint8(1)])
            ep.create_dataset("dones", data=np.r_[np.zeros(T - 1, np.uint8), np.uint8(1)])
            ep.attrs["num_samples"] = T
            ep.attrs["model_file"] = "<mujoco/>"
            ep.attrs["init_state"] = np.zeros(20)
        grp.attrs["num_demos"] = 2
        grp.attrs["total"] = 15


def aloha() -> None:
    rng = np.random.default_rng(3)
    for i, T in enumerate((6, 5)):
        with h5py.File(OUT / f"episode_{i}.hdf5", "w", rdcc_nbytes=1024**2 * 2) as root:
            root.attrs["sim"] = i == 0
            obs = root.create_group("observations")
            image = obs.create_group("images")
            for v, cam in enumerate(("cam_high", "cam_left_wrist")):
                film = pictures(v, T, (32, 48), rng)
                film[:, :8] = (250, 30, 30)  # red above
                if i == 0:
                    image.create_dataset(cam, (T, 32, 48, 3), dtype="uint8", chunks=(1, 32, 48, 3), data=film)
                    continue
                packed = [jpeg_encode(p, level=95) for p in film]
                longest = max(map(len, packed))
                rows = np.stack([np.frombuffer(p.ljust(longest, b"\0"), np.uint8) for p in packed])
                image.create_dataset(cam, data=rows, chunks=(1, longest))
            obs.create_dataset("qpos", data=np.c_[np.arange(T) / 10, rng.normal(size=(T, 13))])
            obs.create_dataset("qvel", data=rng.normal(size=(T, 14)))
            obs.create_dataset("effort", data=rng.normal(size=(T, 14)))
            root.create_dataset("action", data=np.c_[np.arange(T) / 10 + 0.05, rng.normal(size=(T, 13))])
            if i == 1:
                root.attrs["compress"] = True
                root.create_dataset("base_action", data=rng.normal(size=(T, 2)))
                root.create_dataset("compress_len", data=np.zeros((2, T)))


def maniskill() -> None:
    rng = np.random.default_rng(4)
    episodes = []
    with h5py.File(OUT / "maniskill.h5", "w") as h5_file:
        for i in range(2):
            T = 5 + i
            group = h5_file.create_group(f"traj_{i}", track_order=True)
            qpos = np.c_[np.arange(T + 1) / 10, rng.normal(size=(T + 1, 8))].astype(np.float32)
            group.create_dataset("obs/agent/qpos", data=qpos, dtype=np.float32)
            group.create_dataset("obs/agent/qvel", data=rng.normal(size=(T + 1, 9)), dtype=np.float32)
            group.create_dataset("obs/extra/tcp_pose", data=rng.normal(size=(T + 1, 7)), dtype=np.float32)
            for v, camera in enumerate(("base_camera", "hand_camera")):
                rgb = pictures(v, T + 1, (16, 16), rng)
                group.create_dataset(f"obs/sensor_data/{camera}/rgb", data=rgb, compression="gzip", compression_opts=5)
            group.create_dataset("actions", data=np.c_[np.arange(T) / 10, rng.uniform(-1, 1, (T, 3))], dtype=np.float32)
            for name, last in (("terminated", True), ("truncated", False), ("success", True)):
                group.create_dataset(name, data=np.r_[np.zeros(T - 1, bool), last], dtype=bool)
            group.create_dataset("env_states/actors/cube", data=rng.normal(size=(T + 1, 13)), dtype=np.float32)
            episodes.append({"episode_id": i, "episode_seed": i, "control_mode": "pd_ee_delta_pos", "elapsed_steps": T})
    about = {
        "env_info": {
            "env_id": "PickCube-v1",
            "env_kwargs": {"obs_mode": "rgb", "robot_uids": "panda"},
            "max_episode_steps": 50,
        },
        "episodes": episodes,
        "source_type": "motionplanning",
    }
    (OUT / "maniskill.json").write_text(json.dumps(about, indent=2))


if __name__ == "__main__":
    maniskill()
    robomimic()
    libero()
    aloha()
    print(*(f"{p.name} {p.stat().st_size}" for p in sorted(OUT.iterdir())))
