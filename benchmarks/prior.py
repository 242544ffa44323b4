"""Speed and memory of a prior of 1b_lyrics' width, against the machine's limits and the plain formulation, in one run.

Every figure is a median over rounds that take turns, so that a machine that slows down slows all of them.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModel, TorchAoConfig
from transformers.utils import logging

from benchmarks.plain_prior import PlainStack
from benchmarks.vqvae import SGEMM_SIZE, peak_memory, timed, where_time_goes
from jukebox_hf import JukeboxCache, JukeboxPriorConfig, JukeboxPriorModel
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS

READ_BYTES = 2**30
# Where in the window the steps are timed: half full.
START = 3264
# One after the other, as in a song: a first step finds everything but its matrices out of the caches too.
STEPS = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.bfloat16}
PRIOR_KINDS = {
    "matrix products": ("addmm", "aten::mm", "aten::_int_mm"),
    "compiled kernels and their calls": ("graph_", "CompiledFxGraph"),
    "attention": ("_scaled_dot_product",),
    "guards": ("Cache Lookup",),
}
# A decoding loop checks once, and not at every step, that nobody has changed the model's modules; and it calls the
# kernels of a step without Python.
COMPILE_OPTIONS = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe, "cpp_wrapper": True}


def random_1b_lyrics(num_layers: int) -> JukeboxPriorModel:
    config = JukeboxPriorConfig(
        **OFFICIAL_CHECKPOINTS["1b-lyrics-prior-level-2"].config.to_diff_dict() | {"num_hidden_layers": num_layers}
    )
    torch.manual_seed(0)
    return JukeboxPriorModel(config).eval()


def load(folder: Path, name: str) -> JukeboxPriorModel:
    """Loads for decoding; for one query in half precision PyTorch's fused attention is slower than its formula."""
    int8 = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())} if name == "int8" else {}
    return AutoModel.from_pretrained(folder, dtype=DTYPES[name], attn_implementation="eager", **int8).eval()


def decoder(model: JukeboxPriorModel, batch_size: int, compiled: bool = True):
    """A job that decodes one position of each sample, half-way into the window."""
    lyrics = torch.zeros(batch_size, model.config.num_lyric_tokens, dtype=torch.long)
    conditioning = model.condition(lyric_ids=lyrics, batch_size=batch_size)
    cache, tokens = JukeboxCache(model.config), torch.full((batch_size, 1), 100)
    forward = model
    if compiled:
        # Apart, as without guards one model could take another's step; and a copy, as torch takes the filter out of it.
        forward = torch.compile(model.forward, fullgraph=True, options=dict(COMPILE_OPTIONS), isolate_recompiles=True)
    model(decoder_input_ids=tokens, past_key_values=cache, **conditioning)

    def step() -> torch.Tensor:
        cache.position.fill_(START)
        return forward(decoder_input_ids=tokens, past_key_values=cache, **conditioning).logits

    step()
    return step


def repeated(step):
    def job():
        for _ in range(STEPS):
            step()

    return job


def matrix_bytes(model: JukeboxPriorModel) -> int:
    """What one step has to read: every matrix once."""
    modules = [*(m for m in model.layers.modules() if isinstance(m, torch.nn.Linear)), model.lm_head]
    size = 0
    for module in modules:
        weight = getattr(module.weight, "qdata", module.weight)
        size += weight.numel() * weight.element_size()
    return size


def decoding(console: Console, num_layers: int):
    buffer = torch.zeros(READ_BYTES // 4)
    sizes, steps = {}, {}
    reference = random_1b_lyrics(num_layers)
    plain = PlainStack(reference, START)
    vector = torch.randn(1, 1, reference.config.hidden_size)

    def plain_step():
        plain.position = START
        for *_, caches in plain.layers:
            caches[:] = [cache[:, : lengths[id(caches)]] for cache in caches]
        plain.step(vector)

    lengths = {id(caches): caches[0].shape[1] for *_, caches in plain.layers}
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        models = {name: load(Path(folder), name) for name in DTYPES}
    del reference
    for name, model in models.items():
        sizes[name] = matrix_bytes(model)
        for batch_size in (1, 16):
            steps[f"{name}, {batch_size}"] = decoder(model, batch_size)
    steps |= {"plain": plain_step, "eager": decoder(models["fp32"], 1, compiled=False)}
    # Which of the two reads memory faster depends on the library's work for the CPU.
    steps |= {"sum": buffer.sum, "product": lambda: buffer.view(-1, vector.shape[-1]) @ vector.flatten()}
    took = {name: time / STEPS for name, time in timed({name: repeated(step) for name, step in steps.items()}).items()}
    bandwidth = READ_BYTES / min(took["sum"], took["product"])

    table = Table(title=f"decoding, {num_layers} layers of 1b_lyrics, CPU, {torch.get_num_threads()} threads")
    columns = (
        "weights",
        "samples",
        "ms a step",
        "tokens/s",
        "of bandwidth",
        "over plain",
        "over fp32",
        "over one sample",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "weights" else "right")
    for name in DTYPES:
        for batch_size in (1, 16):
            time = took[f"{name}, {batch_size}"]
            table.add_row(
                name,
                str(batch_size),
                f"{1000 * time:.1f}",
                f"{batch_size / time:.1f}",
                f"{sizes[name] / time / bandwidth:.0%}",
                f"{took['plain'] / time:.1f}" if batch_size == 1 else "",
                f"{took[f'fp32, {batch_size}'] / time:.1f}",
                f"{batch_size * took[f'{name}, 1'] / time:.1f}" if batch_size > 1 else "",
            )
    console.print(table)
    console.print(
        f"read bandwidth {bandwidth / 1e9:.1f} GB/s (the faster of a sum of {READ_BYTES / 2**30:g} GiB, "
        f"{READ_BYTES / took['sum'] / 1e9:.1f}, and its product with a vector). All compiled but plain: "
        f"{1000 * took['plain']:.1f} ms, {sizes['fp32'] / took['plain'] / bandwidth:.0%} of bandwidth; our model in "
        f"eager mode: {1000 * took['eager']:.1f} ms. int8: torchao's weights, activations in bf16."
    )
    reference = steps["fp32, 1"]()
    for name in ("bf16", "fp16", "int8"):
        difference = (steps[f"{name}, 1"]() - reference).abs().max() / reference.abs().max()
        console.print(f"{name}: logits off by at most {difference:.1e} of the largest (random weights)")
    where_time_goes(console, "fp32, eager", repeated(steps["eager"]), PRIOR_KINDS)
    where_time_goes(console, "int8, compiled", repeated(steps["int8, 1"]), PRIOR_KINDS)


def prefill_multiply_adds(model: JukeboxPriorModel) -> float:
    """Multiply-adds of the layers over one window; each query counts with the keys that it sees."""
    config = model.config
    grid, width = config.grid, config.num_attention_heads * config.head_dim
    n, length, blocks = grid.length, grid.block_length, grid.num_blocks
    keys = {"r": length / 2, "p": length, "c": blocks / 2, "D": n / 2, "P": grid.num_prime}
    matrices = sum(m.weight.numel() for m in model.layers.modules() if isinstance(m, torch.nn.Linear))
    return n * (matrices + sum(2 * keys[letter] * width for letter in config.layer_patterns))


def prefill(console: Console, num_layers: int):
    model = random_1b_lyrics(num_layers)
    config = model.config
    codes = torch.randint(config.vocab_size, (1, config.context_length))
    lyrics = torch.zeros(1, config.num_lyric_tokens, dtype=torch.long)
    left, right = torch.randn(SGEMM_SIZE, SGEMM_SIZE), torch.randn(SGEMM_SIZE, SGEMM_SIZE)

    def run():
        return model(codes, lyric_ids=lyrics, logits_to_keep=1)

    before = peak_memory(reset=True)
    run()
    peak = peak_memory()
    took = timed({"sgemm": lambda: left @ right, "prefill": run}, rounds={"prefill": 3})
    share = prefill_multiply_adds(model) / took["prefill"] / (SGEMM_SIZE**3 / took["sgemm"])
    console.print(
        f"prefill of {config.context_length} codes after {config.num_lyric_tokens} characters, {num_layers} layers, "
        f"fp32: {took['prefill']:.2f} s, {share:.0%} of sgemm peak ({SGEMM_SIZE**3 / took['sgemm'] / 1e9:.0f} G "
        f"multiply-adds a second), peak memory {peak - before:.0f} MB above the {before:.0f} MB of libraries and model"
    )


def measure_loading(folder: str, dtype: str):
    import jukebox_hf  # noqa: F401

    before = resident_memory()
    done, seen = threading.Event(), []

    def watch():
        while not done.wait(0.005):
            seen.append(resident_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype))
    # Weights that keep their type are the file's own pages, mapped, until somebody reads them.
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6
    sum(parameter.sum() for parameter in model.parameters())
    done.set()
    watcher.join()
    own, mapped = (max(values) - start for values, start in zip(zip(*seen), before))
    print(
        f"loading {dtype} from float16 files: {size:.0f} MB of weights; peak {own:.0f} MB of memory of its own, "
        f"{own / size:.2f} times, and {mapped:.0f} MB of the files' pages, which the system may drop"
    )


def resident_memory() -> tuple[float, float]:
    """This process's own and its files' mapped pages in memory, in MB, on Linux."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile"))


def loading(console: Console, num_layers: int):
    with tempfile.TemporaryDirectory() as folder:
        model = random_1b_lyrics(num_layers)
        model.save_pretrained(Path(folder, "float32"))
        load(Path(folder, "float32"), "fp16").save_pretrained(Path(folder, "float16"))
        del model
        for dtype in ("float16", "float32", "bfloat16"):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.prior", "--measure-loading", f"{folder}/float16", "--dtype", dtype],
                check=True,
                capture_output=True,
                text=True,
            )
            console.print(done.stdout.strip(), highlight=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24, help="of 1b_lyrics' 72")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure-loading", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    if arguments.measure_loading:
        return measure_loading(arguments.measure_loading, arguments.dtype)
    console = Console(width=130)
    loading(console, arguments.layers)
    prefill(console, min(arguments.layers, 12))
    decoding(console, arguments.layers)


if __name__ == "__main__":
    main()
