import torch

from . import functional  # noqa: F401


class Transform(torch.nn.Module):
    """Only subclassed, never called, when a data set is read without augmentation."""
