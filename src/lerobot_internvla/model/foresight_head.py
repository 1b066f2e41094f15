"""Image latents into foresight tokens and back (paper section "Generation expert").

In: [B, V, 2 frames, C, h, w] latents -> one token per ``foresight_stride`` x ``foresight_stride`` cells, ordered (view,
time, row, column). Out: the two frames' tokens are averaged, upsampled and projected to the latent of the future frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architecture import Architecture


class ForesightHead(nn.Module):
    """Latents -> tokens -> predicted latents. Names map one to one onto the released checkpoint's."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels, width, stride = (
            architecture.image_tokenizer.latent_channels,
            architecture.expert.hidden,
            architecture.foresight_stride,
        )
        self.grid = architecture.foresight_grid
        self.in_proj = nn.Conv2d(channels, width, kernel_size=1)
        self.downsample = nn.Conv2d(width, width, kernel_size=stride, stride=stride)
        self.upsample = nn.ConvTranspose2d(width, width, kernel_size=stride, stride=stride)
        self.out_norm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, channels)

    def embed(self, latents: Tensor) -> Tensor:
        """Tokens [B, V x T x rows x columns, D] of latents [B, V, T, C, h, w].

        Nothing non-linear stands between the 1x1 projection and the strided convolution, so their kernels are
        multiplied first: the same function and the same gradients, without a [h, w] map of full width.
        """
        weight = torch.einsum("odij,dc->ocij", self.downsample.weight, self.in_proj.weight[:, :, 0, 0])
        bias = self.downsample.bias
        assert bias is not None and self.in_proj.bias is not None
        bias = bias + torch.einsum("odij,d->o", self.downsample.weight, self.in_proj.bias)
        tokens = F.conv2d(latents.flatten(0, 2).to(weight.dtype), weight, bias, stride=self.downsample.stride)
        return torch.unflatten(tokens.flatten(2).transpose(1, 2), 0, latents.shape[:3]).flatten(1, 3)

    def read_out(self, hidden: Tensor, views: int) -> Tensor:
        """Predicted future latents [B, V, C, h, w] of the foresight block's last hidden states."""
        batch = hidden.shape[0]
        rows, columns = self.grid
        frames = torch.unflatten(hidden.to(self.out_proj.weight.dtype), 1, (views, -1, rows * columns))
        maps = torch.unflatten(frames.mean(dim=2).flatten(0, 1).transpose(1, 2), 2, (rows, columns))
        wide = self.upsample(maps).permute(0, 2, 3, 1)
        latents = self.out_proj(self.out_norm(wide)).permute(0, 3, 1, 2)
        return torch.unflatten(latents, 0, (batch, views))
