"""stub"""

from transformers import GenerationMixin


class JukeboxGenerationMixin(GenerationMixin):
    pass
