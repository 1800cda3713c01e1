"""The cameras of a Gymnasium environment, and the parts of its observations by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from wamkit.config import ConfigError
from wamkit.envs.rendering import Renderer, load_mujoco
from wamkit.errors import nearest
from wamkit.registry import named_object

_NAMED = re.compile(r"(?!camera:)[\w.]+:\w+")
_VIEW = ("lookat", "distance", "azimuth", "elevation")
_SHOWN = 16


def parts(observation: Any) -> dict[str, Any]:
    """Key -> value of everything that an observation, or an info, holds: `pixels.top` for an entry of an entry.

    An observation that is no dictionary is called `observation`.

    Examples:
        >>> parts({"pixels": {"top": 1}, "agent_pos": 2})
        {'pixels.top': 1, 'agent_pos': 2}
    """
    if not isinstance(observation, Mapping):
        return {"observation": observation}
    found: dict[str, Any] = {}
    for key, value in observation.items():
        inner = {f"{key}.{k}": v for k, v in parts(value).items()} if isinstance(value, Mapping) else {str(key): value}
        found |= inner
    return found


def part(held: Mapping[str, Any], key: str, what: str) -> Any:
    """The value called `key`. Raises ConfigError, with the nearest and all that there is, for one that is not there.

    held: of `parts`.   what: begins the message.
    """
    if key not in held:
        raise ConfigError(f"{what}: there is no {key!r}{nearest(key, held)}; there is {described(held)}")
    return held[key]


def described(held: Mapping[str, Any]) -> str:
    """Words for all that an observation holds."""
    words = [f"{key} ({kind(value)})" for key, value in held.items()]
    return ", ".join(words[:_SHOWN] + ["..."] * (len(words) > _SHOWN)) or "nothing"


def kind(value: Any) -> str:
    """Type and shape of a value."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


class Views:
    """Images of all cameras at one size.

    env: the environment.   where: begins error messages.   image: option `image` of `GymConfig`.
    height, width: pixels.   supersample: see `Renderer`.
    Raises ConfigError for a source that there is not.

    Cameras of the MuJoCo model are drawn by wamkit's own renderer. It leaves the simulation as it is, which some
    environments' render() does not, and shows the right image where several environments share a process.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        where: str,
        image: str | Mapping[str, Any],
        height: int,
        width: int,
        supersample: int,
    ):
        self._env, self._where, self._size = env, where, (height, width)
        self._sources = sources(image, where)
        self.names = tuple(self._sources)
        """Names of the cameras."""
        self._drawn = {n: s for n, s in self._sources.items() if _is_mujocos(s)}
        self._renderer = self._mujoco_renderer(supersample) if self._drawn else None

    def images(self, held: Mapping[str, Any]) -> np.ndarray:
        """The present images, uint8 (V, 3, H, W). held: `parts` of the present observation."""
        drawn = iter(self._draw()) if self._drawn else iter(())
        return np.stack([next(drawn) if n in self._drawn else self._seen(s, held) for n, s in self._sources.items()])

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()

    def _seen(self, source: str | Callable[[Any], Any], held: Mapping[str, Any]) -> np.ndarray:
        """The image of a source that the environment, or a function of it, gives."""
        if callable(source):
            found, advice = source(self._env), ""
        elif source == "render":
            found, advice = self._env.render(), " (an environment is made with render_mode='rgb_array')"
        else:
            found, advice = part(held, source, f"{self._where}: image"), ""
        image = np.asarray(found)
        if image.dtype != np.uint8 or image.ndim != 3 or 3 not in (image.shape[0], image.shape[-1]):
            name = getattr(source, "__name__", type(source).__name__) if callable(source) else source
            raise ConfigError(
                f"{self._where}: image {name!r} must be uint8 (H, W, 3) or (3, H, W), found {kind(found)}{advice}"
            )
        return _resized(image.transpose(2, 0, 1) if image.shape[-1] == 3 else image, *self._size)

    def _mujoco_renderer(self, supersample: int) -> Renderer:
        mujoco, inner = load_mujoco(), self._env.unwrapped
        model, data = getattr(inner, "model", None), getattr(inner, "data", None)
        if not isinstance(model, mujoco.MjModel) or not isinstance(data, mujoco.MjData):
            raise ConfigError(f"{self._where}: its cameras cannot be drawn: it has no MuJoCo `model` and `data`")
        known = [model.camera(i).name for i in range(model.ncam)]
        cameras = [s if isinstance(s, Mapping) else s.removeprefix("camera:") for s in self._drawn.values()]
        for camera in cameras:
            if isinstance(camera, str) and camera not in known:
                have = ", ".join(known) or "none"
                raise ConfigError(f"{self._where}: unknown camera {camera!r}{nearest(camera, known)}; it has: {have}")
        (height, width), buffer = self._size, model.vis.global_
        buffer.offheight = max(buffer.offheight, supersample * height)
        buffer.offwidth = max(buffer.offwidth, supersample * width)
        model.vis.quality.offsamples = 0
        size = {"height": height, "width": width, "supersample": supersample}
        return Renderer(mujoco, model, data, cameras=cameras, sites=True, **size)

    def _draw(self) -> np.ndarray:
        """The images of MuJoCo's cameras, uint8 (V, 3, H, W), the simulation left as it was.

        Environments of gymnasium-robotics move their goal markers in `_render_callback`, and compute anew all that is
        derived from the state, so that the next step would be another one: here they do so with a copy.
        """
        inner = self._env.unwrapped
        if not hasattr(inner, "_render_callback"):
            return self._renderer.render()
        data = inner.data
        inner.data = copy.copy(data)
        try:
            inner._render_callback()
            return self._renderer.render(inner.data)
        finally:
            inner.data = data


def sources(image: str | Mapping[str, Any], where: str) -> dict[str, Any]:
    """Name of a camera -> its source.

    image: option `image` of `GymConfig`.   where: begins error messages.
    """
    if isinstance(image, str) and _NAMED.fullmatch(image):
        named = named_object(image, "option image")
        image = {image.rpartition(":")[2]: named} if callable(named) else named
    if isinstance(image, str):
        given = [s.strip() for s in image.split(",") if s.strip()]
        short = [re.split("[.:]", s)[-1] for s in given]
        image = dict(zip(short if len(set(short)) == len(short) else given, given, strict=True))
    if not image:
        raise ConfigError(f"{where}: it needs images: --options image=render, or image=KEY")
    for name, source in image.items():
        if not re.fullmatch(r"[\w.:-]+", name):
            raise ConfigError(f"{where}: camera {name!r}: letters, digits and _ name a camera")
        if isinstance(source, Mapping):
            _check_view(source, f"{where}: camera {name!r}")
        elif not isinstance(source, str) and not callable(source):
            raise ConfigError(
                f"{where}: camera {name!r}: its source is a text, a free camera or a function, found {source!r}"
            )
    return {re.sub(r"[^\w-]", "_", name): source for name, source in image.items()}


def _is_mujocos(source: Any) -> bool:
    return isinstance(source, Mapping) or isinstance(source, str) and source.startswith("camera:")


def _check_view(view: Mapping[str, Any], where: str) -> None:
    for key in view:
        if key not in _VIEW:
            raise ConfigError(
                f"{where}: unknown key {key!r}{nearest(key, _VIEW)}; a free camera has {', '.join(_VIEW)}"
            )
    for key in _VIEW:
        value = np.asarray(view.get(key, np.nan))
        shape = (3,) if key == "lookat" else ()
        if value.shape != shape or value.dtype.kind not in "if" or not np.isfinite(value).all():
            what = "three numbers" if shape else "a number"
            raise ConfigError(f"{where}: {key} must be {what}, found {view.get(key)!r}")


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (3, h, w) as (3, H, W), by area averaging."""
    if image.shape[1:] == (height, width):
        return np.ascontiguousarray(image)
    import torch

    large = torch.from_numpy(np.ascontiguousarray(image)).float()[None]
    return torch.nn.functional.interpolate(large, (height, width), mode="area")[0].round().to(torch.uint8).numpy()
