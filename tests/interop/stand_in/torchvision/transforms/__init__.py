import numpy as np
import torch

from . import v2  # noqa: F401


class ToTensor:
    """A picture (H, W, C) of uint8 becomes a float tensor (C, H, W) in [0, 1]."""

    def __call__(self, picture):
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor
