"""What a run that can go on keeps of how it was begun, to be compared when it does."""

import importlib.metadata
from typing import Any


def flat_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Gives nested settings by names such as `temperature.2`."""
    flat = {}
    for name, value in settings.items():
        is_nested = isinstance(value, dict)
        flat |= flat_settings(value, f"{prefix}{name}.") if is_nested else {f"{prefix}{name}": value}
    return flat


def package_versions() -> dict[str, str]:
    """Gives the versions that decide about a run's numbers."""
    return {name: importlib.metadata.version(name) for name in ("jukebox-hf", "torch", "transformers")}
