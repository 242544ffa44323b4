"""Makes transformers' Auto classes find the Jukebox classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioTokenization,
    AutoModelForTextToWaveform,
    AutoProcessor,
    AutoTokenizer,
)

from .configuration_jukebox import JukeboxConfig, JukeboxPriorConfig, JukeboxVQVAEConfig
from .feature_extraction_jukebox import JukeboxFeatureExtractor
from .modeling_jukebox import JukeboxModel
from .modeling_jukebox_prior import JukeboxPriorModel
from .modeling_jukebox_vqvae import JukeboxVQVAEModel
from .processing_jukebox import JukeboxProcessor
from .tokenization_jukebox import JukeboxTokenizer


def register_auto_classes():
    """Registers every configuration, model and preprocessor of this package; doing it again changes nothing."""
    AutoConfig.register(JukeboxVQVAEConfig.model_type, JukeboxVQVAEConfig, exist_ok=True)
    AutoModel.register(JukeboxVQVAEConfig, JukeboxVQVAEModel, exist_ok=True)
    AutoModelForAudioTokenization.register(JukeboxVQVAEConfig, JukeboxVQVAEModel, exist_ok=True)
    AutoConfig.register(JukeboxPriorConfig.model_type, JukeboxPriorConfig, exist_ok=True)
    AutoModel.register(JukeboxPriorConfig, JukeboxPriorModel, exist_ok=True)
    AutoTokenizer.register(JukeboxPriorConfig, tokenizer_class=JukeboxTokenizer, exist_ok=True)
    AutoProcessor.register(JukeboxPriorConfig, JukeboxProcessor, exist_ok=True)
    AutoFeatureExtractor.register(JukeboxVQVAEConfig, JukeboxFeatureExtractor, exist_ok=True)
    AutoConfig.register(JukeboxConfig.model_type, JukeboxConfig, exist_ok=True)
    AutoModel.register(JukeboxConfig, JukeboxModel, exist_ok=True)
    AutoModelForTextToWaveform.register(JukeboxConfig, JukeboxModel, exist_ok=True)
    AutoFeatureExtractor.register(JukeboxConfig, JukeboxFeatureExtractor, exist_ok=True)
    AutoTokenizer.register(JukeboxConfig, tokenizer_class=JukeboxTokenizer, exist_ok=True)
    AutoProcessor.register(JukeboxConfig, JukeboxProcessor, exist_ok=True)
