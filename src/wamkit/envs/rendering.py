"""Off-screen rendering with MuJoCo, in software (OSMesa) unless the environment variable MUJOCO_GL chooses
otherwise."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from wamkit.config import ConfigError
from wamkit.errors import missing_package
from wamkit.types import WamkitError


def load_mujoco() -> Any:
    """The package mujoco, set to render in software unless MUJOCO_GL chooses otherwise.

    Raises WamkitError, with a remedy, where it cannot render.
    """
    render_in_software()
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise WamkitError(missing_package(error) or str(error)) from error
    except Exception as error:
        raise _render_error(error) from error
    return mujoco


def render_in_software() -> None:
    """Has MuJoCo, which is not imported yet, render in software unless MUJOCO_GL chooses otherwise.

    Triton, which builds of torch for GPUs bring and import with their first optimizer, has an LLVM, and so has Mesa:
    the process dies where Mesa's is loaded first, as it does with an optimizer after an `import mujoco` of one's own.
    """
    if "mujoco" not in sys.modules and importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton._C.libtriton")
    if sys.platform == "linux" and not os.environ.get("MUJOCO_GL"):  # unset, or set to nothing
        os.environ["MUJOCO_GL"] = "osmesa"


LARGEST = 16_384
"""Pixels of the longest side that is rendered, as most drivers allow."""


def check_rendered(height: int, width: int, supersample: int) -> None:
    """Raises ConfigError where images would be rendered larger than can be before they are averaged down."""
    if max(height, width) * supersample > LARGEST:
        raise ConfigError(
            f"supersample = {supersample}: images of {height}x{width} pixels would be rendered with more than "
            f"{LARGEST} a side; lower it"
        )


class Renderer:
    """Renders the cameras of one simulator. All simulators of a process share one OpenGL context.

    cameras: names of the model's, or free ones as {"lookat": (x, y, z), "distance": metres, "azimuth": degrees,
        "elevation": degrees}.
    supersample: factor by which images are rendered larger and averaged down.   sites: whether MuJoCo's markers are
        shown.
    change: called with each scene (MjvScene) before it is rendered, to change its appearance; never the simulation.

    `mujoco.Renderer` makes a context for each instance, and with two of them alive under OSMesa the second silently
    returns the first one's last image. One context with a frame buffer for each model (MjrContext) gives each its own.
    A process forked after that has the context, but none of the driver's threads: drawing would wait for ever.
    """

    _context: ClassVar[Any] = None
    _process: ClassVar[int] = 0
    """The process that made the context."""

    def __init__(
        self,
        mujoco: Any,
        model: Any,
        data: Any,
        *,
        cameras: Sequence[str | Mapping[str, Any]],
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
        self._cameras, self.turned = [mujoco.MjvCamera() for _ in cameras], list[bool]()
        for camera, which in zip(self._cameras, cameras, strict=True):
            if isinstance(which, Mapping):
                camera.type, camera.lookat[:] = mujoco.mjtCamera.mjCAMERA_FREE, which["lookat"]
                camera.distance, camera.azimuth, camera.elevation = (
                    which[k] for k in ("distance", "azimuth", "elevation")
                )
                self.turned.append(False)
                continue
            i = model.camera(which).id
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, i
            # corner, corner2, corner3 and corner4 are mounted upside down: rotate their images by half a turn.
            self.turned.append(model.cam_bodyid[i] == 0 and data.cam_xmat[i].reshape(3, 3)[2, 1] < -1e-3)

    def render(self, data: Any = None) -> np.ndarray:
        """The present images, uint8 (V, 3, H, W). data: another state (MjData) of the model than the simulator's."""
        images = np.empty((len(self._cameras), 3, self._height, self._width), np.uint8)
        for k, large in enumerate(self._large_images(data=data)):
            images[k] = averaged(large, self._supersample).transpose(2, 0, 1)
        return images

    def segmentation(self) -> np.ndarray:
        """The geom at the centre of each pixel of `render`, int32 (V, H, W); -1 where there is none (sky, sites).

        The model must not smooth edges (`vis.quality.offsamples` = 0): mixed colours would encode other geoms.
        """
        n, middle = self._supersample, self._supersample // 2
        ids = np.empty((len(self._cameras), self._height, self._width), np.int32)
        kind = self._mujoco.mjtObj.mjOBJ_GEOM
        for k, large in enumerate(self._large_images(segment=True)):
            # The colour is 1 + the index in the scene; 0 for the sky.
            code = large[middle::n, middle::n].astype(np.int32) @ (1, 1 << 8, 1 << 16)
            geoms = self._scene.geoms[: self._scene.ngeom]
            names = {g.segid + 1: g.objid for g in geoms if g.objtype == kind and g.segid >= 0}
            table = np.full(max(names, default=0) + 1, -1, np.int32)
            table[list(names)] = list(names.values())
            ids[k] = np.where(code < len(table), table[np.minimum(code, len(table) - 1)], -1)
        return ids

    def _large_images(self, segment: bool = False, data: Any = None) -> Iterator[np.ndarray]:
        """Each camera's upright image before averaging, uint8 (n H, n W, 3); with `segment`, colours encode geoms."""
        mujoco, n = self._mujoco, self._supersample
        height, width = n * self._height, n * self._width
        if self._target is None:
            self._open()
        Renderer._context.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._target)
        rectangle, everything = mujoco.MjrRect(0, 0, width, height), mujoco.mjtCatBit.mjCAT_ALL
        bottom_up, flags = np.empty((height, width, 3), np.uint8), mujoco.mjtRndFlag
        for camera, turned in zip(self._cameras, self.turned, strict=True):
            state = self._data if data is None else data
            mujoco.mjv_updateScene(self._model, state, self._options, None, camera, everything, self._scene)
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
        if Renderer._context is not None and Renderer._process != os.getpid():
            raise WamkitError(
                "this process was forked from one that had rendered with OpenGL, which does not survive that: start it "
                "by spawn instead (gymnasium.make_vec: vector_kwargs={'context': 'spawn'}), or before the first image"
            )
        try:
            if Renderer._context is None:
                Renderer._context = mujoco.GLContext(n * self._width, n * self._height)
                Renderer._process = os.getpid()
            Renderer._context.make_current()
            self._scene = mujoco.MjvScene(model, 1000)
            self._target = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:
            raise _render_error(error) from error

    def close(self) -> None:
        """Frees the frame buffer; the next call of `render` makes a new one."""
        if self._target is not None:
            Renderer._context.make_current()
            self._target.free()
            self._target = None


def averaged(large: np.ndarray, n: int) -> np.ndarray:
    """An image uint8 (n H, n W, 3), n up to 16, as the rounded means of its blocks of n x n pixels, (H, W, 3).

    Sums of slices: a seventh of the time of `reshape` and `sum`.

    Examples:
        >>> averaged(np.uint8([[[0], [1]], [[2], [3]]]), 2).tolist()
        [[[2]]]
    """
    total = np.zeros((len(large) // n, large.shape[1] // n, large.shape[2]), np.uint16)
    for i in range(n):
        for j in range(n):
            total += large[i::n, j::n]
    return ((total + n * n // 2) // (n * n)).astype(np.uint8)


def _render_error(error: Exception) -> WamkitError:
    chosen = os.environ.get("MUJOCO_GL", "")
    software = "install the Debian package libosmesa6"
    advice = f"To render in software, {software}; with a GPU and its driver, or with libegl1, set MUJOCO_GL=egl"
    if chosen.lower() != "osmesa":
        advice = f"It needs a GPU and its driver: to render in software set MUJOCO_GL=osmesa and {software}"
    return WamkitError(f"MuJoCo cannot render with MUJOCO_GL={chosen!r} ({type(error).__name__}: {error}). {advice}")
