"""Roles of cameras, as far as their names tell them."""

from __future__ import annotations

import re

from wamkit.metadata import CameraFacts

_ROLES = {
    "wrist": ("wrist", "hand", "gripper", "palm"),
    "ego": ("ego", "head"),
    "scene": (
        *("scene", "top", "front", "side", "left", "right", "high", "low", "overhead", "exterior", "external", "third"),
        *(
            "agentview",
            "static",
            "base",
            "corner",
            "laptop",
            "phone",
            "webcam",
            "image",
            "rgb",
            "primary",
            "up",
            "main",
        ),
    ),
}


def camera_by_name(camera: str, cameras: int) -> CameraFacts | None:
    """The role that a camera's name tells; None if none. The only one of all `cameras` is taken for the scene's."""
    words = [w for w in re.split(r"[^a-z]+", camera.lower()) if w]
    found = (role for role, starts in _ROLES.items() if any(w.startswith(starts) for w in words))
    role = next(found, "scene" if cameras == 1 else "")
    return CameraFacts(role) if role else None  # type: ignore[arg-type]  # one of its roles
