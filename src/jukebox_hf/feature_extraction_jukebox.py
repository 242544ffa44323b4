from transformers import SequenceFeatureExtractor


class JukeboxFeatureExtractor(SequenceFeatureExtractor):
    pass
