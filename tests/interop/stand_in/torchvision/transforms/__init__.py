import numpy as np
import torch

from . import functional, v2  # noqa: F401


class ToTensor:
    """A picture (H, W, C) of uint8 becomes a float tensor (C, H, W) in [0, 1]; one of 16-bit numbers an int16 tensor
    (1, H, W).
    """

    def __call__(self, picture):
        if picture.mode == "I;16":
            return torch.from_numpy(np.array(picture).astype(np.int16))[None]
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor
