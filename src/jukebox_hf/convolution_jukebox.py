"""One-dimensional convolutions over time-major signals `(batch, frames, channels)`, fed whole or block by block."""

from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

# What a convolution reads, in input frames: zeros before and after the signal, frames for one output, step to the next.
Reach = namedtuple("Reach", "padding span step")


class SignalStream:
    """What the convolutions of one network remember between two blocks of one signal.

    A convolution reads frames on both sides of the frame it writes, so the last frames of a block wait here, a few for
    each layer, until the next block brings their neighbours. Every frame of every layer is computed once, and the
    blocks joined are the one-pass result; windows with a recomputed halo would cost the released model's level 0
    46 000 samples on each side of every window.

    A stream that ends with its first block (the default) is the plain one-pass convolution.

    Args:
        ends (`bool`): whether the block that comes next is the signal's last.
        piece_size (`int`, *optional*): layers cut what they get so that no activation holds more values of one clip.
    """

    def __init__(self, ends: bool = True, piece_size: int | None = None):
        self.ends = ends
        self.piece_size = piece_size
        self._waiting: dict[nn.Module, torch.Tensor] = {}

    def begins(self, conv: nn.Module) -> bool:
        """Whether nothing has reached this convolution yet."""
        return conv not in self._waiting

    def extend(self, conv: "JukeboxConv1d | JukeboxConvTranspose1d", block: torch.Tensor) -> torch.Tensor:
        """Joins a block to the frames that wait before `conv`; zeros stand before and after the whole signal.

        Shapes: `(batch, frames, channels)` to the frames from which `conv` now computes all it can.
        """
        reach = conv.reach
        zeros = block.new_zeros(block.shape[0], reach.padding, block.shape[2])
        before = zeros if self.begins(conv) else self._waiting[conv]
        joined = torch.cat([before, block, zeros] if self.ends else [before, block], dim=1)
        if not self.ends and block.shape[1]:
            done = max(0, (joined.shape[1] - reach.span) // reach.step + 1) * reach.step
            # A copy: a view would keep the whole block alive.
            self._waiting[conv] = joined[:, done:].clone()
        return joined

    def pieces(self, block: torch.Tensor, values_per_frame: float) -> Iterator[torch.Tensor]:
        """Cuts a block for a layer that holds so many values for each of its input frames."""
        ends, frames = self.ends, max(1, block.shape[1])
        if self.piece_size is not None:
            frames = max(1, int(self.piece_size / values_per_frame))
        for start in range(0, max(1, block.shape[1]), frames):
            self.ends = ends and start + frames >= block.shape[1]
            yield block[:, start : start + frames]


def run_shrinking(layers: Iterable[nn.Module], block: torch.Tensor, stream: SignalStream) -> torch.Tensor:
    """Runs a block through layers that give fewer and fewer frames: each layer's pieces are joined for the next."""
    for layer in layers:
        block = _join([layer(piece, stream) for piece in stream.pieces(block, layer.values_per_frame)])
    return block


def run_growing(layers: Sequence[nn.Module], block: torch.Tensor, stream: SignalStream) -> torch.Tensor:
    """Runs a block through layers that give more and more frames: a piece meets all layers before the next starts."""
    if not layers:
        return block
    pieces = stream.pieces(block, layers[0].values_per_frame)
    return _join([run_growing(layers[1:], layers[0](piece, stream), stream) for piece in pieces])


def _join(pieces: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]


class JukeboxConv1d(nn.Conv1d):
    """A convolution over `(batch, frames, channels)` that computes only outputs whose inputs are all there.

    `padding` is what [`SignalStream.extend`] puts around the signal; the convolution itself adds none. Called without
    a stream it takes frames that are extended already.
    """

    @property
    def reach(self) -> Reach:
        return Reach(self.padding[0], self.dilation[0] * (self.kernel_size[0] - 1) + 1, self.stride[0])

    @property
    def values_per_frame(self) -> int:
        return max(self.in_channels, self.out_channels)

    def forward(self, hidden_states: torch.Tensor, stream: SignalStream | None = None) -> torch.Tensor:
        if stream is not None:
            hidden_states = stream.extend(self, hidden_states)
        if hidden_states.shape[1] < self.reach.span:
            return hidden_states.new_zeros(hidden_states.shape[0], 0, self.out_channels)
        if self.in_channels == 1 and self.dilation[0] == 1:
            # Convolution kernels waste their lanes on a single channel; its frames times the weights do not.
            frames = hidden_states[..., 0].unfold(1, self.kernel_size[0], self.stride[0])
            return F.linear(frames, self.weight[:, 0], self.bias)
        # A time-major signal is an image one pixel high stored channels-last, and convolution libraries are at their
        # best there: on a CPU this runs two to four times faster than conv1d, which transposes.
        image = hidden_states.transpose(1, 2).unsqueeze(2)
        kernel = self.weight.unsqueeze(2)
        image = F.conv2d(image, kernel, self.bias, stride=(1, self.stride[0]), dilation=(1, self.dilation[0]))
        return image.squeeze(2).transpose(1, 2)


class JukeboxConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution of kernel `2 * stride` and padding `stride // 2` over `(batch, frames, channels)`.

    Between two input frames lie `stride` outputs that depend on just these two: the layer is an ordinary convolution
    of kernel 2 whose channels are then laid out in time. The outer `stride // 2` outputs of the signal are dropped.
    """

    reach = Reach(padding=1, span=2, step=1)

    def forward(self, hidden_states: torch.Tensor, stream: SignalStream) -> torch.Tensor:
        stride, edge = self.stride[0], self.stride[0] // 2
        start = edge if stream.begins(self) else 0
        hidden_states = stream.extend(self, hidden_states)
        batch, frames, _ = hidden_states.shape
        if frames < self.reach.span:
            return hidden_states.new_zeros(batch, 0, self.out_channels)
        taps = self.weight.view(self.in_channels, self.out_channels, 2, stride).flip(2)
        kernel = taps.permute(3, 1, 0, 2).reshape(stride * self.out_channels, self.in_channels, 1, 2)
        image = F.conv2d(hidden_states.transpose(1, 2).unsqueeze(2), kernel, self.bias.repeat(stride))
        hidden_states = image.squeeze(2).transpose(1, 2).reshape(batch, (frames - 1) * stride, self.out_channels)
        return hidden_states[:, start : hidden_states.shape[1] - edge if stream.ends else None]


class JukeboxResidualBlock(nn.Module):
    """ReLU, dilated convolution, ReLU, pointwise convolution, times `scale`, added to the input."""

    def __init__(self, hidden_size: int, inner_size: int, dilation: int, scale: float = 1.0):
        super().__init__()
        self.conv1 = JukeboxConv1d(hidden_size, inner_size, 3, padding=dilation, dilation=dilation)
        self.conv2 = JukeboxConv1d(inner_size, hidden_size, 1)
        self.scale = scale

    def forward(self, hidden_states: torch.Tensor, stream: SignalStream) -> torch.Tensor:
        hidden_states = stream.extend(self.conv1, hidden_states)
        # What a convolution gives is a view: with gradients, each change in place would copy the whole layer twice.
        in_place = not torch.is_grad_enabled()
        update = self.conv2(F.relu(self.conv1(F.relu(hidden_states)), inplace=in_place))
        start = self.conv1.padding[0]
        residual = hidden_states[:, start : start + update.shape[1]]
        if self.scale != 1.0:
            update = update.mul_(self.scale) if in_place else update * self.scale
        return update.add_(residual) if in_place else update + residual


class JukeboxDownsample(GradientCheckpointingLayer):
    """A strided convolution and the residual blocks at its rate."""

    def __init__(self, in_channels: int, stride: int, residual_blocks: nn.ModuleList):
        super().__init__()
        hidden_size = residual_blocks[0].conv1.in_channels
        self.conv = JukeboxConv1d(in_channels, hidden_size, 2 * stride, stride, padding=stride // 2)
        self.residual_blocks = residual_blocks

    @property
    def values_per_frame(self) -> float:
        return self.conv.out_channels / self.conv.stride[0]

    def forward(self, hidden_states: torch.Tensor, stream: SignalStream) -> torch.Tensor:
        hidden_states = self.conv(hidden_states, stream)
        for block in self.residual_blocks:
            hidden_states = block(hidden_states, stream)
        return hidden_states


class JukeboxUpsample(GradientCheckpointingLayer):
    """Residual blocks and the transposed convolution that leaves their rate."""

    def __init__(self, out_channels: int, stride: int, residual_blocks: nn.ModuleList):
        super().__init__()
        hidden_size = residual_blocks[0].conv1.in_channels
        self.residual_blocks = residual_blocks
        self.conv = JukeboxConvTranspose1d(hidden_size, out_channels, 2 * stride, stride, padding=stride // 2)

    @property
    def values_per_frame(self) -> int:
        return self.conv.in_channels

    def forward(self, hidden_states: torch.Tensor, stream: SignalStream) -> torch.Tensor:
        for block in self.residual_blocks:
            hidden_states = block(hidden_states, stream)
        return self.conv(hidden_states, stream)
