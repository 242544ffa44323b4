"""Which characters of a song's lyrics a prior reads beside a window of its music."""

from collections.abc import Sequence

import torch


def lyric_window_indices(
    num_characters: torch.Tensor | int,
    total_length: torch.Tensor | int,
    offset: torch.Tensor | int,
    sample_length: int,
    num_tokens: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Finds the characters around the point of the lyrics where the music window's middle lies in the song.

    Args:
        num_characters: of the whole lyrics; a number or `(batch,)`, like the next two.
        total_length: of the song, in samples.
        offset: where the music window starts in the song, in samples.
        sample_length: of the music window, in samples.
        num_tokens: of the lyric window, an even number.
        dtype: the precision of the middle. The original computes it in fp32 where it moves a window and in fp64 where
            it makes a label; now and then that is another character.

    Returns:
        Indices `(batch, num_tokens)` into the lyrics. Lyrics shorter than the window stand at its end, after -1s.
    """
    num_characters, total_length, offset = torch.broadcast_tensors(
        *(torch.atleast_1d(torch.as_tensor(value)) for value in (num_characters, total_length, offset))
    )
    # Each step rounds, so their order counts.
    middle = num_characters.to(dtype) * (offset.to(dtype) + sample_length / 2) / total_length.to(dtype)
    start = torch.minimum(middle.long() - num_tokens // 2, num_characters - num_tokens).clamp(min=0)
    start = torch.where(num_characters < num_tokens, num_characters - num_tokens, start)
    indices = start[:, None] + torch.arange(num_tokens, device=start.device)
    return indices.clamp(min=-1)


def take_lyric_windows(lyric_ids: Sequence[Sequence[int] | torch.Tensor], indices: torch.Tensor) -> torch.Tensor:
    """Takes from each sample's whole lyrics the ids `(batch, num_tokens)` at `indices`; the index -1 becomes id 0."""
    # With a 0 behind the lyrics, -1 finds it.
    rows = [torch.nn.functional.pad(torch.as_tensor(ids, dtype=torch.long), (0, 1)) for ids in lyric_ids]
    return torch.stack([row.to(indices.device)[index] for row, index in zip(rows, indices)])
