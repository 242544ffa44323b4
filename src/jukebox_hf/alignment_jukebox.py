"""Which characters of the lyrics a song sings when, from the attention of its top prior."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .configuration_jukebox import JukeboxConfig, JukeboxPriorConfig
from .modeling_jukebox_prior import JukeboxPriorModel
from .placement import input_device
from .song_plan import SongConditions
from .windows import plan_windows


@dataclass
class LyricAlignment:
    """Where a song's top-level codes look in its lyrics.

    Args:
        weights (`torch.FloatTensor`): `(codes, characters)`: the attention of each code to each character of the whole
            lyrics, 0 outside the lyric window of the code's own; a row's sum is at most 1.
        seconds_per_code (`float`): a code's length.
    """

    weights: torch.FloatTensor
    seconds_per_code: float


def check_alignment(prior: JukeboxPriorConfig, lyric_ids: Tensor | None):
    """Refuses songs without lyrics, and priors that do not say where they read them."""
    if lyric_ids is None or not prior.num_lyric_tokens:
        raise ValueError("return_alignment=True: give lyrics, and draw the level whose prior reads them.")
    layer, head = prior.alignment_layer, prior.alignment_head
    reading = [index for index, letter in enumerate(prior.layer_patterns) if letter in "xPD"]
    if layer not in reading or head not in range(prior.num_attention_heads):
        raise ValueError(
            f"return_alignment=True: the prior of level {prior.level} has alignment_layer={layer} and "
            f"alignment_head={head}, but lyrics are read by the {prior.num_attention_heads} heads of the layers "
            f"{reading}: set one in its config."
        )


def align_lyrics(
    prior: JukeboxPriorModel, codes: Tensor, conditions: SongConditions, hop: int, config: JukeboxConfig
) -> list[LyricAlignment]:
    """Aligns the lyrics of songs with their top-level codes, in one pass over each window, as the original does.

    Of two windows that overlap the earlier one counts. The original's picture shows each character one place late,
    since the state of a character is what has read the one before; here a column is the character it stands for.

    Args:
        prior: the top one; `config.alignment_layer` and `config.alignment_head` name the attention to look at.
        codes: `(songs, codes)`.
        hop: codes from one window's start to the next one's.
    """
    layer, head = prior.config.alignment_layer, prior.config.alignment_head
    context = prior.config.context_length
    # Its last column takes what has no character.
    weights = torch.zeros(len(codes), codes.shape[1], conditions.lyric_ids.shape[1] + 1)
    for start, *_ in reversed(plan_windows(codes.shape[1], context, hop)):
        for row in range(len(codes)):
            rows = slice(row, row + 1)
            window = codes[rows, start : start + context]
            length = window.shape[1]
            inputs = conditions.window(config, prior.config.level, start, rows)
            output = prior(window.to(input_device(prior)), **inputs, output_attentions=[layer])
            seen = output.lyric_attentions[layer][0, head, :length].float().cpu()
            # A state has read the characters before its own.
            characters = conditions.lyric_indices(prior.config, start, rows)[0].roll(1)
            characters[0] = -1
            weights[row, start : start + length] = 0
            weights[row, start : start + length, characters] = seen
    numbers = [len(lyrics) for lyrics in conditions.lyrics()]
    seconds = prior.config.hop_length / prior.config.sampling_rate
    return [LyricAlignment(song[:, :number], seconds) for song, number in zip(weights, numbers)]


__all__ = ["LyricAlignment"]
