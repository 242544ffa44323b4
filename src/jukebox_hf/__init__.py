"""OpenAI's Jukebox for the Hugging Face ecosystem; importing it registers the classes with the Auto classes."""

from .codes import JukeboxCodeExtractor
from .configuration_jukebox import JukeboxVQVAEConfig
from .feature_extraction_jukebox import JukeboxFeatureExtractor
from .modeling_jukebox_vqvae import JukeboxVQVAEModel
from .registration import register_auto_classes

register_auto_classes()

__version__ = "0.1.0"

__all__ = ["JukeboxCodeExtractor", "JukeboxFeatureExtractor", "JukeboxVQVAEConfig", "JukeboxVQVAEModel"]
