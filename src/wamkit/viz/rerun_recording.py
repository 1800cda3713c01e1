"""An episode and a model's answers about it as a recording of Rerun: images and curves on one timeline, in seconds.

camera/CAMERA              recorded frames
imagined/+8 steps/CAMERA   imagined frames, at the time that they are imagined for
state/NAME                 the robot's state
action/executed/NAME       executed actions
action/answered/NAME       answered actions: of each answer those until the next one
instruction                the text
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from wamkit.data.format.stills import encode_png
from wamkit.files import atomic_write, scratch_folder

TIME = "time"
"""The timeline. It begins with the episode."""


@dataclass(frozen=True)
class EpisodeRecording:
    """One episode of T steps, and answers at every `stride`-th of its first steps, N in all.

    fps: steps a second.   cameras, state_names, action_names: names of the V views and of the dimensions.
    images: uint8 (T, V, 3, H, W).   state: (T, s).   action: (T, a), as executed.
    horizons: steps ahead of the F imagined frames.   imagined: uint8 (N, F, V, 3, H, W), or None.
    answered: (N, A, a), or None.
    """

    text: str
    fps: float
    cameras: Sequence[str]
    state_names: Sequence[str]
    action_names: Sequence[str]
    images: UInt8[np.ndarray, "T V 3 H W"]
    state: Float[np.ndarray, "T s"]
    action: Float[np.ndarray, "T a"]
    stride: int
    horizons: Sequence[int]
    imagined: UInt8[np.ndarray, "N F V 3 H W"] | None
    answered: Float[np.ndarray, "N A a"] | None


def save_recording(path: Path, episode: EpisodeRecording, name: str) -> None:
    """Writes `episode` as an .rrd file, with a layout of views, atomically. `name` tells recordings apart.

    Raises ModuleNotFoundError where the package rerun-sdk is missing, and WriteError where the file cannot be written.
    """
    import rerun as rr

    stream = rr.RecordingStream("wamkit", recording_id=name)
    with scratch_folder() as folder:
        stream.save(str(folder / "episode.rrd"), default_blueprint=_views(episode))
        stream.log("instruction", rr.TextDocument(episode.text or "(no text)"), static=True)
        steps = np.arange(len(episode.images))
        _frames(stream, "camera", episode, steps, episode.images)
        _curves(stream, "state", episode, steps, episode.state, episode.state_names)
        _curves(stream, "action/executed", episode, steps, episode.action, episode.action_names)
        if episode.imagined is not None:
            asked = np.arange(len(episode.imagined)) * episode.stride
            for f, ahead in enumerate(episode.horizons):
                _frames(stream, f"imagined/{_horizon(ahead)}", episode, asked + ahead, episode.imagined[:, f])
        if episode.answered is not None:
            taken = episode.answered[:, : episode.stride]
            asked = np.arange(len(taken)) * episode.stride
            steps = asked[:, None] + np.arange(taken.shape[1])
            _curves(stream, "action/answered", episode, steps.ravel(), np.concatenate(taken), episode.action_names)
        stream.flush()
        stream.disconnect()
        atomic_write(path, (folder / "episode.rrd").read_bytes())


def _horizon(ahead: int) -> str:
    return rf"+{ahead}\ steps".replace("+", r"\+")


def _frames(stream, group: str, episode: EpisodeRecording, steps: np.ndarray, frames: np.ndarray) -> None:
    """Adds frames, uint8 (T, V, 3, H, W), shown at `steps`, as PNG."""
    import rerun as rr

    for view, camera in enumerate(episode.cameras):
        files = [encode_png(np.ascontiguousarray(x.transpose(1, 2, 0))) for x in frames[:, view]]
        columns = rr.EncodedImage.columns(blob=files, media_type=["image/png"] * len(files))
        path = f"{group}/{rr.escape_entity_path_part(camera)}"
        rr.send_columns(path, [rr.TimeColumn(TIME, duration=steps / episode.fps)], columns, recording=stream)


def _curves(
    stream, group: str, episode: EpisodeRecording, steps: np.ndarray, values: np.ndarray, names: Sequence[str]
) -> None:
    """Adds a curve for each column of `values`, (T, d)."""
    import rerun as rr

    for name, column in zip(names, values.T, strict=True):
        path = f"{group}/{rr.escape_entity_path_part(name)}"
        columns = rr.Scalars.columns(scalars=column.astype(np.float64))
        rr.send_columns(path, [rr.TimeColumn(TIME, duration=steps / episode.fps)], columns, recording=stream)


def _views(episode: EpisodeRecording):
    """The layout: for each camera a column, with what was recorded above what was imagined; curves below."""
    import rerun as rr
    import rerun.blueprint as rrb

    ahead = [] if episode.imagined is None else list(episode.horizons)
    columns = [
        rrb.Vertical(
            rrb.Spatial2DView(origin=f"camera/{rr.escape_entity_path_part(camera)}", name=camera),
            *(
                rrb.Spatial2DView(
                    origin=f"imagined/{_horizon(n)}/{rr.escape_entity_path_part(camera)}",
                    name=f"{camera}, imagined {n} steps before",
                )
                for n in ahead
            ),
        )
        for camera in episode.cameras
    ]
    curves = [rrb.TimeSeriesView(origin=origin, name=origin) for origin in ("state", "action")]
    text = rrb.TextDocumentView(origin="instruction", name="instruction")
    rows = rrb.Vertical(rrb.Horizontal(*columns), rrb.Horizontal(*curves, text), row_shares=[3, 2])
    return rrb.Blueprint(rows, collapse_panels=True)
