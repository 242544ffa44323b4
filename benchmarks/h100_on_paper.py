"""How long a whole song would take on one H100: counted from bytes and operations, on paper; nothing was run on one.

A step of decoding reads every matrix once for all songs and each song's own cache; it takes as long as the slower of
reading and computing. Reading the overlaps again (prefill) computes. What is not counted: launching kernels, which at a
few microseconds each would rule without CUDA graphs, the VQ-VAE, labels and the host.
"""

import torch
from rich.console import Console
from rich.table import Table

from jukebox_hf import JukeboxPriorConfig, JukeboxPriorModel
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS
from jukebox_hf.windows import plan_windows

# NVIDIA's data sheet of the H100 SXM, dense: bytes a second, operations a second.
BANDWIDTH = 3.35e12
HALF_RATE = 989e12
# What kernels reach of them, an assumption: our CPU step reaches 84 to 90 % of its memory's bandwidth.
SHARE = 0.7
SECONDS = 180
HOP_FRACTIONS = (0.5, 0.5, 0.125)
MODELS = {
    "1b_lyrics": ("5b-prior-level-0", "5b-prior-level-1", "1b-lyrics-prior-level-2"),
    "5b_lyrics": ("5b-prior-level-0", "5b-prior-level-1", "5b-lyrics-prior-level-2"),
}


def matrix_values(config: JukeboxPriorConfig) -> tuple[int, int]:
    """Values of the layers' matrices, of which cross layers read the lyrics once a window, and of the output matrix."""
    with torch.device("meta"):
        model = JukeboxPriorModel(config)
    names = [name for name, _ in model.named_parameters() if name.startswith("layers.") and name.endswith(".weight")]
    values = sum(model.get_parameter(name).numel() for name in names if "norm" not in name and ".kv_proj" not in name)
    return values, model.lm_head.weight.numel()


def cache_values(config: JukeboxPriorConfig) -> int:
    """Keys and values that a step reads of one song, on average over a window."""
    grid = config.grid
    slots = {
        "r": grid.block_length / 2,
        "c": grid.num_blocks / 2,
        "p": grid.block_length,
        "D": config.sequence_length / 2,
        "P": grid.num_prime,
        "x": config.num_lyric_tokens,
    }
    width = config.num_attention_heads * config.head_dim
    return sum(int(2 * slots[letter] * width) for letter in config.layer_patterns)


def level_seconds(config: JukeboxPriorConfig, songs: int, matrix_bytes: int) -> tuple[int, float, float]:
    """Codes drawn, and seconds of drawing and of reading overlaps again, for one level of a song."""
    total = int(SECONDS * config.sampling_rate) // 128 * 128 // config.hop_length
    hop = int(HOP_FRACTIONS[config.level] * config.context_length)
    windows = plan_windows(total, config.context_length, hop)
    matrices, output = matrix_values(config)
    # Matrices in their type, the output matrix in fp32, the cache in half precision.
    read = matrices * matrix_bytes + output * 4 + songs * cache_values(config) * 2
    computed = 2 * songs * (matrices + output + cache_values(config))
    step = max(read / (SHARE * BANDWIDTH), computed / (SHARE * HALF_RATE))
    positions = sum(config.lyric_offset + window.num_given for window in windows)
    prefill = positions * 2 * songs * (matrices + cache_values(config)) / (SHARE * HALF_RATE)
    return total, total * step, prefill


def main():
    console = Console(width=140)
    table = Table(title=f"ON PAPER, not measured: a song of {SECONDS} s on one H100 SXM, at {SHARE:.0%} of its limits")
    for column in ("model", "songs", "matrices", *(f"level {level}: min" for level in (2, 1, 0)), "overlaps: min",
                   "all: min", "a song: min", "largest level with cache: GB"):  # fmt: skip
        table.add_column(column)
    for name, parts in MODELS.items():
        configs = [OFFICIAL_CHECKPOINTS[part].config for part in parts]
        for songs in (1, 16):
            for matrices, matrix_bytes in (("fp16", 2), ("int8", 1)):
                drawn, overlaps, largest = [], 0.0, 0.0
                for config in configs:
                    _, draw, prefill = level_seconds(config, songs, matrix_bytes)
                    drawn.append(draw)
                    overlaps += prefill
                    weights = sum(matrix_values(config)) * matrix_bytes
                    slots = config.sequence_length * config.layer_patterns.count("c")
                    cache = songs * 4 * slots * config.num_attention_heads * config.head_dim
                    largest = max(largest, weights + cache)
                total = sum(drawn) + overlaps
                table.add_row(
                    name, str(songs), matrices, *(f"{seconds / 60:.1f}" for seconds in reversed(drawn)),
                    f"{overlaps / 60:.2f}", f"{total / 60:.1f}", f"{total / 60 / songs:.1f}", f"{largest / 1e9:.0f}",
                )  # fmt: skip
    console.print(table)
    config = OFFICIAL_CHECKPOINTS["5b-prior-level-0"].config
    matrices, output = matrix_values(config)
    total, draw, _ = level_seconds(config, 1, 2)
    console.print(
        f"The arithmetic for level 0, one song, fp16: {total} codes; a step reads {matrices / 1e6:.0f} M values of "
        f"matrices x 2 bytes, {output / 1e6:.1f} M of the output x 4, {cache_values(config) / 1e6:.2f} M of the cache "
        f"x 2 = {(matrices * 2 + output * 4 + cache_values(config) * 2) / 1e9:.2f} GB, at {SHARE:.0%} of "
        f"{BANDWIDTH / 1e12} TB/s {1e3 * draw / total:.2f} ms; {total} of them {draw / 60:.1f} min. A step of 16 songs "
        f"computes 16 x 2 x {matrices / 1e6:.0f} M = {32 * matrices / 1e9:.0f} G operations, "
        f"{1e3 * 32 * matrices / (SHARE * HALF_RATE):.2f} ms: reading still rules."
    )


if __name__ == "__main__":
    main()
