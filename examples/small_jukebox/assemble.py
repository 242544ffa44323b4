"""Puts a trained VQ-VAE and three priors together to the repository that ships with the package.

Its files keep the priors in half precision, which makes them small enough for a wheel; its configuration says fp32, so
that is what they are loaded in. A README.md that is there already, the model card, stays.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from jukebox_hf import JukeboxModel, JukeboxPriorModel, JukeboxProcessor, JukeboxVQVAEModel

MIB = 2**20
LARGEST = torch.finfo(torch.float16).max


def assemble(vqvae: Path, priors: list[Path], output: Path, temperature: float, top_k: int):
    """Writes the whole model, its settings of sampling and its processor to a folder.

    Args:
        priors: folders with model and processor, in any order.
    """
    parts = [JukeboxPriorModel.from_pretrained(folder, dtype=torch.float32) for folder in priors]
    model = JukeboxModel.from_parts(JukeboxVQVAEModel.from_pretrained(vqvae), parts)
    if set(model.priors) != set(range(model.config.vqvae_config.num_levels)):
        raise ValueError(f"{', '.join(map(str, priors))} are of levels {list(model.priors)}: give one of each level.")
    folders = sorted(zip((part.config.level for part in parts), priors))
    processor = JukeboxProcessor.from_parts([JukeboxProcessor.from_pretrained(folder) for _, folder in folders])
    for part in (model.vqvae, *parts):
        # Where it was trained is nobody else's concern.
        part.config.name_or_path = ""
    model.generation_config.update(do_sample=True, temperature=temperature, top_k=top_k)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    halve_priors(output / "model.safetensors")


def halve_priors(path: Path):
    """Stores the priors' tensors in half precision; the VQ-VAE's stay, lest a code become another."""
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.startswith("prior_"):
            if not tensor.abs().max() <= LARGEST:
                raise ValueError(f"{name} reaches {tensor.abs().max():.3g}, more than half precision holds, {LARGEST}.")
            tensors[name] = tensor.half()
    path.write_bytes(save(tensors, {"format": "pt"}))
    path.chmod(0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vqvae", type=Path, required=True, help="folder that train_vqvae.py wrote")
    parser.add_argument("--priors", type=Path, nargs="+", required=True, help="folders that train_prior.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder of the whole, such as jukebox_hf.demo")
    parser.add_argument("--temperature", type=float, default=0.99, help="that songs are drawn with")
    parser.add_argument("--top-k", type=int, default=0, help="draw among so many likeliest codes; 0 for all")
    arguments = parser.parse_args()
    assemble(**vars(arguments))
    size = sum(path.stat().st_size for path in arguments.output.iterdir())
    print(f"{arguments.output}: {size / MIB:.1f} MiB")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
