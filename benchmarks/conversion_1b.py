"""Converts a checkpoint as large as the released 1b_lyrics and loads the result: time and memory of each, in one run.

The weights are random, as the released ones are not ours to fetch here; names, shapes and file format are theirs.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).parents[1] / "tests"
DEVICE_MAP = dict.fromkeys(
    ["embed_tokens", "embed_positions", "label_embedding", "timing_embedding", "lm_head"], "cpu"
) | {"layers": "disk"}
SIZES_1B = {
    "l_bins": 2048, "prior_width": 2048, "prior_depth": 72, "heads": 2, "blocks": 64, "n_ctx": 6144,
    "y_bins": (604, 7898), "t_bins": 64, "min_duration": 17.84, "max_duration": 600.0, "n_tokens": 384, "n_vocab": 79,
}  # fmt: skip
LOAD = """
import sys, torch, jukebox_hf
from transformers import AutoModel
model = AutoModel.from_pretrained({folder!r}, {arguments})
with torch.no_grad():
    logits = model(torch.arange(8)[None], lyric_ids=torch.zeros(1, 384, dtype=torch.long)).logits
assert logits.shape == (1, 392, 2127) and logits.isfinite().all(), logits
"""
LOADS = {
    'device_map="auto", float16': 'device_map="auto"',
    "bfloat16": "dtype=torch.bfloat16",
    "layers on disk, float16": "device_map={device_map}, offload_folder={offload!r}",
    "36 of 72 layers, float16": "num_hidden_layers=36",
}


class Peak(NamedTuple):
    """Of a process: seconds, and bytes; anonymous memory is what mapped files, which the system can drop, are not."""

    seconds: float
    resident: int
    anonymous: int


def run_measured(code: str) -> Peak:
    """Runs a Python program and watches its memory; raises when it fails."""
    start, anonymous = time.perf_counter(), 0
    # Its last act is to say what it took, as a look from here may come too late.
    code = f"import atexit; atexit.register(lambda: print(open('/proc/self/status').read()))\n{code}"
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            anonymous = max(anonymous, _kilobytes("RssAnon", Path(f"/proc/{process.pid}/status").read_text()))
            time.sleep(0.005)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise RuntimeError(said)
    return Peak(time.perf_counter() - start, 1024 * _kilobytes("VmHWM", said), 1024 * anonymous)


def _kilobytes(name: str, status: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else 0


def save_random_checkpoint(path: Path, shapes: Mapping[str, Sequence[int]], hps: dict, with_optimizer: bool = False):
    """Saves random weights, matrices in fp16, in the legacy format of the original's files."""
    model = {
        name: torch.empty(shape, dtype=torch.float16 if name.endswith(".w") else torch.float32).normal_(std=0.02)
        for name, shape in shapes.items()
    }
    if "merged_decoder" in hps and not hps["merged_decoder"]:
        model["prior.x_out.weight"] = model["prior.x_emb.weight"]
    optimizer = {"state": {name: {"exp_avg": tensor * 0} for name, tensor in model.items()}} if with_optimizer else None
    content = {"hps": hps, "model": model, "opt": optimizer, "step": 1}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", help="where about 6 GB of files may lie for a while; the default is that for temporary ones"
    )
    console = Console()
    golden = torch.load(TESTS / "goldens/prior-1b-lyrics-style/checkpoint.pth.tar", weights_only=True)
    shapes = json.loads((TESTS / "data/official_checkpoint_shapes.json").read_text())["prior_1b_lyrics"]["tensors"]
    table = Table("step", "seconds", "peak resident, GB", "peak anonymous, GB")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as scratch:
        checkpoint, folder = Path(scratch, "checkpoint.pth.tar"), Path(scratch, "converted")
        save_random_checkpoint(checkpoint, shapes, golden["hps"] | SIZES_1B, with_optimizer=True)
        steps = {"only the imports": "import jukebox_hf.cli"}
        for name, arguments in (
            ("convert", [str(checkpoint), str(folder)]),
            ("convert to float32", [str(checkpoint), str(Path(scratch, "float32")), "--dtype", "float32"]),
        ):
            steps[name] = (
                f"import sys; from jukebox_hf.cli import main; sys.argv[1:] = {['convert', *arguments]}; main()"
            )
        for name, arguments in LOADS.items():
            arguments = arguments.format(device_map=DEVICE_MAP, offload=str(Path(scratch, "offload")))
            steps[f"load, {name}"] = LOAD.format(folder=str(folder), arguments=arguments)
        for name, code in steps.items():
            peak = run_measured(code)
            table.add_row(name, f"{peak.seconds:.1f}", f"{peak.resident / 1e9:.2f}", f"{peak.anonymous / 1e9:.2f}")
        written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        console.print(
            f"A checkpoint of {checkpoint.stat().st_size / 1e9:.2f} GB with the optimiser's state, "
            f"{written / 1e9:.2f} GB of weights."
        )
    console.print(table)


if __name__ == "__main__":
    main()
