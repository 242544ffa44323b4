"""What importing the package does, and what it does not."""

import subprocess
import sys

TRANSFORMERS = (
    "from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization, "
    "AutoProcessor, AutoTokenizer, GenerationMixin, PreTrainedConfig, PreTrainedTokenizer, ProcessorMixin, "
    "SequenceFeatureExtractor; from transformers.modeling_utils import PreTrainedModel"
)


def _modules_after(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_costs_no_more_than_transformers():
    extra = _modules_after("import jukebox_hf") - _modules_after(TRANSFORMERS)
    foreign = {name.partition(".")[0] for name in extra} - {"jukebox_hf"}
    # Counted in modules, not in seconds, which depend on what else the machine does.
    assert not foreign & {
        "datasets",
        "soundfile",
        "soxr",
        "torchcodec",
        "matplotlib",
        "typer",
        "rich",
        "pandas",
        "scipy",
    }
    others = [name for name in extra if not name.startswith("jukebox_hf")]
    assert len(others) < 10, sorted(others)


def test_import_twice_and_registers():
    program = (
        "import importlib, jukebox_hf; importlib.reload(jukebox_hf.registration).register_auto_classes();"
        "from transformers import AutoConfig; AutoConfig.for_model('jukebox_vqvae')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
