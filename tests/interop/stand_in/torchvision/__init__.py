"""Stands in for torchvision where no build fits the installed PyTorch: the few names that lerobot's data sets use."""

from . import io, transforms  # noqa: F401

__version__ = "0.0.0+stand.in"


def set_video_backend(name):
    """There is one backend, PyAV, so the only choice is it."""
    if name != "pyav":
        raise ValueError(f"the stand-in decodes with pyav, not {name}")
