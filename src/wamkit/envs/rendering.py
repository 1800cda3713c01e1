"""Drawing by MuJoCo, off-screen: by software (OSMesa) unless MUJOCO_GL says otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from wamkit.types import WamkitError


def load_mujoco() -> Any:
    """The package mujoco, set to draw by software where nobody chose. Raises WamkitError, with what to do, where it can't draw."""
    if sys.platform == "linux" and not os.environ.get("MUJOCO_GL"):  # unset, or set to nothing
        os.environ["MUJOCO_GL"] = "osmesa"
    try:
        import mujoco
    except Exception as error:
        raise _render_error(error) from error
    return mujoco


class Pictures:
    """Draws cameras of one simulator. All simulators of a process share one OpenGL context.

    supersample: pictures are drawn so many times larger and averaged down.   sites: whether MuJoCo's markers are drawn.
    change: called with each scene (MjvScene) of `draw` before it is drawn, to change what it shows and not what is simulated.

    `mujoco.Renderer` makes a context for each instance, and with two of them alive under OSMesa the second silently gives
    the first one's last picture. One context with a frame buffer for each model (MjrContext) gives every one its own.
    """

    _context: ClassVar[Any] = None

    def __init__(
        self,
        mujoco: Any,
        model: Any,
        data: Any,
        *,
        cameras: Sequence[str],
        height: int,
        width: int,
        supersample: int = 3,
        sites: bool = False,
        change: Callable[[Any], None] | None = None,
    ):
        self._mujoco, self._model, self._data = mujoco, model, data
        self._height, self._width, self._supersample, self._change = height, width, supersample, change
        self._target: Any = None
        self._options = mujoco.MjvOption()
        if not sites:
            self._options.sitegroup[:] = 0
        ids = [model.camera(name).id for name in cameras]
        self._cameras = [mujoco.MjvCamera() for _ in ids]
        for camera, index in zip(self._cameras, ids, strict=True):
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, index
        # corner, corner2, corner3 and corner4 are mounted upside down: turn their pictures by half a turn.
        self.turned = [model.cam_bodyid[i] == 0 and data.cam_xmat[i].reshape(3, 3)[2, 1] < -1e-3 for i in ids]

    def draw(self) -> np.ndarray:
        """The present pictures, uint8 (V, 3, H, W)."""
        n = self._supersample
        pictures = np.empty((len(self._cameras), 3, self._height, self._width), np.uint8)
        for k, large in enumerate(self._large()):
            blocks = large.transpose(2, 0, 1).reshape(3, self._height, n, self._width, n).sum((2, 4), np.uint16)
            pictures[k] = (blocks + n * n // 2) // (n * n)
        return pictures

    def segmentation(self) -> np.ndarray:
        """Which geom the centre of each pixel of `draw` shows, int32 (V, H, W); -1 where none is (sky, sites).

        The model must not smooth edges (`vis.quality.offsamples` = 0): mixed colours would name other geoms.
        """
        n, middle = self._supersample, self._supersample // 2
        ids = np.empty((len(self._cameras), self._height, self._width), np.int32)
        kind = self._mujoco.mjtObj.mjOBJ_GEOM
        for k, large in enumerate(self._large(segment=True)):
            drawn = large[middle::n, middle::n].astype(np.int32) @ (
                1,
                1 << 8,
                1 << 16,
            )  # 1 + the number in the scene; 0: sky
            geoms = self._scene.geoms[: self._scene.ngeom]
            names = {g.segid + 1: g.objid for g in geoms if g.objtype == kind and g.segid >= 0}
            table = np.full(max(names, default=0) + 1, -1, np.int32)
            table[list(names)] = list(names.values())
            ids[k] = np.where(drawn < len(table), table[np.minimum(drawn, len(table) - 1)], -1)
        return ids

    def _large(self, segment: bool = False) -> Iterator[np.ndarray]:
        """Each camera's upright picture as drawn, uint8 (n H, n W, 3); with `segment`, numbers of geoms for colours."""
        mujoco, n = self._mujoco, self._supersample
        height, width = n * self._height, n * self._width
        if self._target is None:
            self._open()
        Pictures._context.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._target)
        rectangle, everything = mujoco.MjrRect(0, 0, width, height), mujoco.mjtCatBit.mjCAT_ALL
        bottom_up, flags = np.empty((height, width, 3), np.uint8), mujoco.mjtRndFlag
        for camera, turned in zip(self._cameras, self.turned, strict=True):
            mujoco.mjv_updateScene(self._model, self._data, self._options, None, camera, everything, self._scene)
            if self._change is not None and not segment:
                self._change(self._scene)
            for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION):
                self._scene.flags[flag] = 0
            for flag in (flags.mjRND_SEGMENT, flags.mjRND_IDCOLOR):
                self._scene.flags[flag] = segment
            mujoco.mjr_render(rectangle, self._scene, self._target)
            mujoco.mjr_readPixels(bottom_up, None, rectangle, self._target)
            yield bottom_up[:, ::-1] if turned else bottom_up[::-1]

    def _open(self) -> None:
        mujoco, model, n = self._mujoco, self._model, self._supersample
        try:
            if Pictures._context is None:
                Pictures._context = mujoco.gl_context.GLContext(n * self._width, n * self._height)
            Pictures._context.make_current()
            self._scene = mujoco.MjvScene(model, 1000)
            self._target = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:
            raise _render_error(error) from error

    def close(self) -> None:
        """Frees the frame buffer; the next draw makes a new one."""
        if self._target is not None:
            Pictures._context.make_current()
            self._target.free()
            self._target = None


def _render_error(error: Exception) -> WamkitError:
    chosen = os.environ.get("MUJOCO_GL", "")
    software = "install the Debian package libosmesa6"
    advice = f"For drawing by software {software}; with a GPU and its driver set MUJOCO_GL=egl"
    if chosen.lower() != "osmesa":
        advice = f"It needs a GPU and its driver: for drawing by software set MUJOCO_GL=osmesa and {software}"
    return WamkitError(f"MuJoCo cannot draw with MUJOCO_GL={chosen!r} ({type(error).__name__}: {error}). {advice}")
