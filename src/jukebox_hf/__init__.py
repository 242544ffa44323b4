"""OpenAI's Jukebox for the Hugging Face ecosystem; importing it registers the classes with the Auto classes."""

from pathlib import Path

from .cache_jukebox import JukeboxCache
from .codes import JukeboxCodeExtractor
from .configuration_jukebox import (
    JukeboxConditionerConfig,
    JukeboxConfig,
    JukeboxLyricsEncoderConfig,
    JukeboxPriorConfig,
    JukeboxVQVAEConfig,
)
from .embedding_recipes import EmbeddingRecipe
from .embeddings import JukeboxEmbedder, JukeboxEmbedding
from .feature_extraction_jukebox import JukeboxFeatureExtractor
from .modeling_jukebox import JukeboxModel
from .modeling_jukebox_prior import JukeboxPriorModel
from .modeling_jukebox_vqvae import JukeboxVQVAEModel
from .pipelines import JukeboxEmbeddingPipeline, register_pipeline
from .processing_jukebox import JukeboxProcessor
from .registration import register_auto_classes
from .tokenization_jukebox import JukeboxTokenizer

register_auto_classes()
register_pipeline()

__version__ = "0.1.0"

# A small trained Jukebox that comes with the package: its folder, which goes wherever a repository's name goes.
demo = str(Path(__file__).parent / "demo_model")

__all__ = [
    "EmbeddingRecipe",
    "JukeboxCache",
    "JukeboxCodeExtractor",
    "JukeboxConditionerConfig",
    "JukeboxConfig",
    "JukeboxEmbedder",
    "JukeboxEmbedding",
    "JukeboxEmbeddingPipeline",
    "JukeboxFeatureExtractor",
    "JukeboxLyricsEncoderConfig",
    "JukeboxModel",
    "JukeboxPriorConfig",
    "JukeboxPriorModel",
    "JukeboxProcessor",
    "JukeboxTokenizer",
    "JukeboxVQVAEConfig",
    "JukeboxVQVAEModel",
    "demo",
]
