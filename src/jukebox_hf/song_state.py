"""What a song's generation leaves on disk, so that a run that was killed goes on to the same bits."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import soundfile
import torch
from accelerate.utils import align_module_device
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedConfig, PreTrainedModel

from .run_settings import flat_settings, package_versions

logger = logging.getLogger(__name__)

STATE_FILE = "song.safetensors"
# A tensor is known by a sum of all its bits, which takes a second where a hash takes ten, and by so many samples.
SAMPLES_PER_TENSOR = 64


class SongState:
    """A folder that holds the state of a run, and the audio of each level as far as it is drawn.

    `song.safetensors` holds the codes of each level, -1 where none is drawn yet, and the states of the generators; its
    metadata the settings and versions. It is replaced as a whole after each window. `song-<n>-level-<l>.wav` follows
    from the codes and is written anew by a run that goes on.

    Args:
        folder: made when missing.
        settings: everything that the song depends on, as JSON has it.

    Raises:
        ValueError: the folder holds the state of another song, of other weights or other settings, or no state at all
            in its file.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike, settings: dict[str, Any]):
        self.folder = Path(folder)
        self.settings = settings
        # Looked up once: that takes longer than to write a short song's state and sync it.
        self.versions = package_versions()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.codes: dict[int, Tensor] = {}
        self.random_states: list[Tensor] = []
        self._open_tracks: set[Path] = set()
        if (saved := read_settings(self.folder)) is not None:
            self._refuse_other(saved)
            self._load()

    def save(self, codes: dict[int, Tensor], random_states: list[Tensor]):
        """Writes the state; until the new one is whole and on the disk, the old one stands.

        Raises:
            OSError: no space, or no permission; names the file and says that the last state stands.
        """
        tensors = {f"codes.{level}": values.to(torch.int32) for level, values in codes.items()}
        tensors |= {f"random.{index}": state for index, state in enumerate(random_states)}
        content = save(tensors, {"settings": json.dumps(self.settings), "versions": json.dumps(self.versions)})
        path = self.folder / STATE_FILE
        partial = path.with_name(f".{STATE_FILE}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            # The new name itself has to survive a power cut, too.
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise self._failure(path, error) from error

    def append_audio(self, level: int, first_song: int, audio: Tensor, sampling_rate: int):
        """Appends audio `(songs, 1, samples)` to the files of these songs; the first call of a run starts them anew.

        Raises:
            OSError: as `save`.
        """
        for song, samples in enumerate(audio[:, 0].float().clamp(-1, 1).cpu().numpy(), start=first_song):
            path = self.audio_path(song, level)
            settings = dict(samplerate=sampling_rate, channels=1, subtype="PCM_16", mode="w")
            try:
                with soundfile.SoundFile(path, **(dict(mode="r+") if path in self._open_tracks else settings)) as file:
                    file.seek(0, soundfile.SEEK_END)
                    file.write(samples)
            except (OSError, soundfile.SoundFileError) as error:
                raise self._failure(path, error) from error
            self._open_tracks.add(path)

    def audio_path(self, song: int, level: int) -> Path:
        """Where the audio of a song at a level is."""
        return self.folder / f"song-{song}-level-{level}.wav"

    def _load(self):
        with safe_open(self.folder / STATE_FILE, "pt") as file:
            names = sorted(file.keys(), key=lambda name: (len(name), name))
            levels = {int(name.removeprefix("codes.")): name for name in names if name.startswith("codes.")}
            self.codes = {level: file.get_tensor(name).long() for level, name in levels.items()}
            self.random_states = [file.get_tensor(name) for name in names if name.startswith("random.")]
            versions = json.loads(file.metadata()["versions"])
        if versions != self.versions:
            logger.warning(
                "%s was begun with %s and goes on with %s; the result may differ in its last bits.",
                self.folder, versions, self.versions,
            )  # fmt: skip

    def _refuse_other(self, saved: dict[str, Any]):
        # As JSON has them: tuples are lists there.
        saved, settings = flat_settings(saved), flat_settings(json.loads(json.dumps(self.settings)))
        differing = [name for name in {**saved, **settings} if saved.get(name) != settings.get(name)]
        if differing:
            name = differing[0]
            others = f"; {', '.join(differing[1:])} differ, too" if differing[1:] else ""
            raise ValueError(
                f"{self.folder} holds a song begun with {name}={_short(saved.get(name))}, not "
                f"{_short(settings.get(name))}{others}. Go on with the same weights and settings, or choose another "
                "folder."
            )

    def _failure(self, path: Path, error: Exception) -> OSError:
        return OSError(
            f"{path} could not be written ({error}). Free some space and run the same command again: the song goes on "
            f"from the last window in {self.folder}."
        )


def read_settings(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Reads what the song in a folder was begun with, or None when there is none.

    Raises:
        ValueError: a file that is no state.
    """
    path = Path(folder, STATE_FILE)
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["settings"])
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no state of a song ({error}): use another folder, or remove it.") from error


def fingerprint(module: nn.Module) -> str:
    """Gives a checksum of a model's configuration and weights; it reads all of them, once."""
    digest = hashlib.sha256(repr(module).encode())
    if isinstance(module, PreTrainedModel):
        digest.update(json.dumps(_own_settings(module.config.to_dict()), sort_keys=True).encode())
    for name, part in module.named_modules():
        if not part._parameters and not part._buffers:
            continue
        # Weights that are offloaded come back for as long as they are read.
        with align_module_device(part):
            for own, tensor in sorted({**part._parameters, **part._buffers}.items()):
                if tensor is not None:
                    digest.update(f"{name}.{own} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    _add_values(digest, tensor.detach())
    return digest.hexdigest()


def _own_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says of its model, without what every configuration says of where it is from."""
    common = PreTrainedConfig().to_dict().keys() - {"model_type"}
    own = {name: value for name, value in config.items() if name not in common and name != "auto_map"}
    return {name: _own_settings(value) if isinstance(value, dict) else value for name, value in own.items()}


def _add_values(digest: Any, tensor: Tensor):
    if is_traceable_wrapper_subclass(tensor):
        # Quantized weights are several tensors.
        for name in tensor.__tensor_flatten__()[0]:
            _add_values(digest, getattr(tensor, name))
        return
    content = tensor.reshape(-1).view(torch.uint8)
    if content.storage_offset() % 8:
        content = content.clone()
    num_whole = len(content) // 8 * 8
    words, rest = content[:num_whole].view(torch.int64), content[num_whole:]
    # Integers have one sum, in whatever order they are added; the samples tell where they are.
    samples = words[:: max(1, len(words) // SAMPLES_PER_TENSOR)]
    digest.update(repr([words.sum().item(), samples.tolist(), rest.tolist()]).encode())


def checksum(tensors: Iterable[Tensor | None]) -> str:
    """Gives a checksum of the values of some tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(None if tensor is None else tensor.tolist()).encode())
    return digest.hexdigest()


def random_states(
    generator: torch.Generator | list[torch.Generator] | None, devices: Iterable[torch.device]
) -> list[Tensor]:
    """Gives the states of what draws on these devices: the generators, or PyTorch's own."""
    if generator is not None:
        return [one.get_state() for one in (generator if isinstance(generator, list) else [generator])]
    accelerators = [torch.get_device_module(device).get_rng_state(device) for device in _accelerators(devices)]
    return [torch.get_rng_state(), *accelerators]


def restore_random_states(
    generator: torch.Generator | list[torch.Generator] | None, devices: Iterable[torch.device], states: list[Tensor]
):
    """Puts back what `random_states` gave."""
    if generator is not None:
        for one, state in zip(generator if isinstance(generator, list) else [generator], states):
            one.set_state(state)
        return
    torch.set_rng_state(states[0])
    for device, state in zip(_accelerators(devices), states[1:]):
        torch.get_device_module(device).set_rng_state(state, device)


def _accelerators(devices: Iterable[torch.device]) -> list[torch.device]:
    return sorted({device for device in devices if device.type != "cpu"}, key=str)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
