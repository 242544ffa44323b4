"""transformers' own text-to-audio pipeline with a composite repository."""

import numpy as np
import pytest
import torch
from song_models import song_model, song_processor
from transformers import AutoModelForTextToWaveform, AutoProcessor, pipeline

from jukebox_hf import JukeboxModel, JukeboxPriorModel, JukeboxProcessor
from jukebox_hf.audio_files import write_audio

SECONDS = 8192 / 44100
LABELS = {"artist": "Vela", "genre": "Folk", "total_seconds": 5.0}


@pytest.fixture(scope="module", params=["song-1b-lyrics-style", "song-5b-style"])
def repository(request, converted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    model = song_model(request.param, converted)
    model.save_pretrained(folder)
    song_processor(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(repository):
    return pipeline("text-to-audio", model=str(repository))


def lyrics_for(pipe):
    return "Hey now, (go)!" if pipe.model.config.priors[2].num_lyric_tokens else ""


def test_the_auto_classes_find_the_parts(repository):
    assert isinstance(AutoModelForTextToWaveform.from_pretrained(repository), JukeboxModel)
    processor = AutoProcessor.from_pretrained(repository)
    assert isinstance(processor, JukeboxProcessor)
    assert processor.sample_length is None


def test_a_song_is_what_generate_gives(pipe):
    text, settings = lyrics_for(pipe), {"seconds": SECONDS}
    torch.manual_seed(3)
    result = pipe(text, preprocess_params=LABELS, generate_kwargs=settings)
    torch.manual_seed(3)
    expected = pipe.model.generate(**pipe.processor(text, **LABELS), **settings).audio
    assert result["sampling_rate"] == 44100
    assert result["audio"].shape == (8192,)
    np.testing.assert_array_equal(result["audio"], expected[0, 0].numpy())


def test_the_default_is_one_context_of_the_top_prior(pipe):
    context = pipe.model.config.priors[2].sample_length
    assert len(pipe(lyrics_for(pipe), preprocess_params=LABELS)["audio"]) == context


def test_batches_give_what_each_song_gives_alone(pipe):
    texts = [lyrics_for(pipe), ""]
    settings = {"seconds": SECONDS, "do_sample": False}
    together = pipe(texts, preprocess_params=LABELS, generate_kwargs=settings, batch_size=2)
    alone = [pipe(text, preprocess_params=LABELS, generate_kwargs=settings) for text in texts]
    assert len(together) == 2
    for one, other in zip(together, alone):
        # The same codes; sums over a batch round their audio otherwise.
        np.testing.assert_allclose(one["audio"], other["audio"], rtol=0, atol=1e-6)


def test_songs_are_saved(pipe, tmp_path):
    result = pipe(lyrics_for(pipe), preprocess_params=LABELS, generate_kwargs={"seconds": SECONDS})
    write_audio(tmp_path / "song.wav", [result["audio"]], result["sampling_rate"])
    assert (tmp_path / "song.wav").stat().st_size == 44 + 2 * len(result["audio"])
    pipe.save_pretrained(tmp_path / "saved")
    again = pipeline("text-to-audio", model=str(tmp_path / "saved"))
    torch.manual_seed(0)
    first = pipe(lyrics_for(pipe), preprocess_params=LABELS, generate_kwargs={"seconds": SECONDS})
    torch.manual_seed(0)
    second = again(lyrics_for(pipe), preprocess_params=LABELS, generate_kwargs={"seconds": SECONDS})
    np.testing.assert_array_equal(first["audio"], second["audio"])


def test_saved_in_half_precision_it_loads_in_half_precision(pipe, tmp_path):
    model = JukeboxModel.from_pretrained(pipe.model.name_or_path, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    again = JukeboxModel.from_pretrained(tmp_path)
    assert {prior.dtype for prior in again.priors.values()} == {torch.float16}
    assert again.vqvae.dtype == torch.float32


def test_a_prior_loads_alone_with_its_configuration(pipe):
    repository, config = pipe.model.name_or_path, pipe.model.config.priors[1]
    prior = JukeboxPriorModel.from_pretrained(repository, config=config)
    assert torch.equal(prior.embed_tokens.weight, pipe.model.prior_1.embed_tokens.weight)
    with pytest.raises(ValueError, match="level=2 with the configuration of level 1"):
        JukeboxPriorModel.from_pretrained(repository, config=config, level=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: give a number above 0"),
        ({"temperature": [1.0, -1.0, 1.0]}, "temperature=-1.0"),
        ({"top_k": -3}, "top_k=-3"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"seconds": 1e9}, "longer than the 60 s"),
        ({"num_return_sequences": -1}, "num_return_sequences=-1"),
    ],
)
def test_settings_that_would_fail_in_the_middle_are_refused_at_once(pipe, settings, message):
    with pytest.raises(ValueError, match=message):
        pipe.model.generate(**{"seconds": SECONDS} | settings)


def test_the_repositorys_processor_serves_a_model_of_some_of_its_priors(pipe):
    top = JukeboxModel.from_parts(pipe.model.vqvae, [pipe.model.prior_2])
    inputs, settings = pipe.processor(lyrics_for(pipe), **LABELS), {"seconds": SECONDS, "do_sample": False}
    song = top.generate(**inputs, **settings, levels=[2])
    assert torch.equal(song.audio_codes[2], pipe.model.generate(**inputs, **settings, levels=[2]).audio_codes[2])


def test_misspelt_settings_are_refused(pipe):
    with pytest.raises(ValueError, match="does not know secnds"):
        pipe(lyrics_for(pipe), preprocess_params=LABELS, generate_kwargs={"secnds": 1})
