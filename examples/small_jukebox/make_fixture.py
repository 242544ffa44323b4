"""Encodes windows of held-out music for the tests of the shipped model, which have no music to encode."""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from jukebox_hf import JukeboxConfig, JukeboxProcessor, demo
from jukebox_hf.training import CodeWindows, encode_music, read_music

# Of each level; those of the upper levels are longer.
NUM_WINDOWS = {0: 12, 1: 8, 2: 4}


def take_windows(music: Path, model: str) -> dict[str, torch.Tensor]:
    """Gives what each prior takes, `{level}.{name}`, of windows spread evenly over the music."""
    config, tokenizer = JukeboxConfig.from_pretrained(model), JukeboxProcessor.from_pretrained(model).tokenizer
    songs, tensors = encode_music(read_music(music), model, list(config.priors)), {}
    for level, prior in config.priors.items():
        windows = CodeWindows(songs, prior, tokenizer, random_shift=False)
        places = np.linspace(0, len(windows) - 1, NUM_WINDOWS[level]).astype(int)
        items = [windows[place] for place in places.tolist()]
        for name in items[0].keys() - {"labels"}:
            values = torch.stack([item[name] for item in items])
            is_codes = name in ("input_ids", "upper_codes")
            tensors[f"{level}.{name}"] = values.to(torch.int16 if is_codes else torch.int32).contiguous()
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--music", type=Path, required=True, help="folder of music that no part was trained on")
    parser.add_argument("--model", default=demo, help="the whole model; default: the one that ships")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[2] / "tests/data/demo_codes.safetensors")
    arguments = parser.parse_args()
    arguments.output.write_bytes(save(take_windows(arguments.music, arguments.model)))
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
