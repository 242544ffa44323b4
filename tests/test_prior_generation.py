"""`generate` for one window: what transformers offers, and generators, which it does not."""

import warnings

import pytest
import torch
from prior_styles import STYLES, inputs_of, random_prior
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from jukebox_hf import JukeboxCache, JukeboxPriorModel

SAMPLED = {"do_sample": True, "top_k": 0}


@pytest.fixture(params=STYLES)
def model(request) -> JukeboxPriorModel:
    return random_prior(request.param)


def conditions_of(model: JukeboxPriorModel, batch_size: int = 2) -> dict[str, torch.Tensor]:
    inputs = inputs_of(model, batch_size)
    del inputs["input_ids"]
    return inputs


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_it_fills_the_window(model):
    codes = model.generate(**conditions_of(model))
    size = (len(codes), model.config.context_length)
    assert codes.shape == size and len(codes) == (1 if model.config.num_artists == 0 else 2)
    assert codes.min() >= 0 and codes.max() < model.config.vocab_size


@torch.no_grad()
def test_each_greedy_code_is_the_likeliest_after_those_before(model):
    inputs = inputs_of(model)
    prompt = inputs.pop("input_ids")[:, :7]
    # What a shared stack draws of the lyrics' vocabulary is fed back as such, and could not be told from the codes.
    lyric_ids = list(range(model.config.code_offset)) or None
    codes = model.generate(prompt, max_new_tokens=20, suppress_tokens=lyric_ids, **inputs)
    assert torch.equal(codes[:, :7], prompt)
    logits = model(codes, **inputs).logits[:, model.config.lyric_offset :, model.config.code_offset :]
    assert torch.equal(logits.argmax(-1)[:, 7:], codes[:, 7:])


def test_one_generator_a_sample_makes_a_batch_of_single_runs(model):
    conditions, prompt = conditions_of(model, 3), inputs_of(model, 3)["input_ids"][:, :4]
    together = model.generate(prompt, generator=generators(5, 6, 7), max_length=24, **SAMPLED, **conditions)
    for row, seed in enumerate((5, 6, 7)):
        one = {name: value[row : row + 1] for name, value in conditions.items()}
        alone = model.generate(prompt[row : row + 1], generator=generators(seed), max_length=24, **SAMPLED, **one)
        assert torch.equal(together[row : row + 1], alone)
    assert not torch.equal(together[0], together[1])


def test_a_generator_repeats_and_goes_on():
    model = random_prior("top")
    generator = torch.Generator().manual_seed(3)
    first, second = (model.generate(max_length=20, generator=generator, **SAMPLED) for _ in range(2))
    assert not torch.equal(first, second)
    again = torch.Generator().manual_seed(3)
    assert torch.equal(model.generate(max_length=20, generator=again, **SAMPLED), first)


def test_return_sequences_repeat_each_sample(model):
    conditions, prompt = conditions_of(model), inputs_of(model)["input_ids"][:, :4]
    settings = {"max_length": 20, **SAMPLED}
    codes = model.generate(prompt, num_return_sequences=2, generator=generators(1, 2, 3, 4), **settings, **conditions)
    assert codes.shape == (4, 20)
    twice = {name: value.repeat_interleave(2, dim=0) for name, value in conditions.items()}
    expected = model.generate(prompt.repeat_interleave(2, dim=0), generator=generators(1, 2, 3, 4), **settings, **twice)
    assert torch.equal(codes, expected)


def test_top_k_and_temperature_reach_the_generator():
    model = random_prior("top")
    greedy = model.generate(max_length=20)
    assert torch.equal(model.generate(max_length=20, do_sample=True, top_k=1, generator=generators(1)), greedy)
    cold = model.generate(max_length=20, do_sample=True, top_k=0, temperature=1e-4, generator=generators(1))
    assert torch.equal(cold, greedy)


class Recorder(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.ended = True


def test_a_streamer_is_given_the_codes(model):
    inputs = inputs_of(model, 1)
    prompt = inputs.pop("input_ids")[:, :5]
    streamer = Recorder()
    codes = model.generate(prompt, max_length=12, streamer=streamer, **inputs)
    assert streamer.ended
    assert torch.equal(torch.cat([value.flatten() for value in streamer.values]), codes[0])


def test_processors_and_criteria_see_the_stacks_own_ids(model):
    config, inputs = model.config, inputs_of(model)
    prompt = inputs.pop("input_ids")[:, :5]
    seen = []

    class OnlyCodeThree(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids)
            wanted = torch.full_like(scores, -torch.inf)
            wanted[:, 3 + config.code_offset] = 0.0
            return wanted

    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            done = input_ids.shape[1] >= 1 + config.lyric_offset + 9
            return torch.full((len(input_ids),), done)

    codes = model.generate(prompt, logits_processor=[OnlyCodeThree()], stopping_criteria=[Stop()], **inputs)
    assert codes.shape == (2, 9)
    assert (codes[:, 5:] == 3).all()
    expected = model.decoder_inputs(prompt, inputs.get("lyric_ids"))
    assert torch.equal(seen[0], expected)


def test_a_drawn_lyric_id_becomes_code_0_but_is_fed_back_as_drawn():
    model = random_prior("shared lyrics")
    inputs = inputs_of(model)
    prompt = inputs.pop("input_ids")[:, :5]
    fed = []

    class OnlyCharacterTwo(LogitsProcessor):
        def __call__(self, input_ids, scores):
            fed.append(input_ids[:, -1])
            wanted = torch.full_like(scores, -torch.inf)
            wanted[:, 2] = 0.0
            return wanted

    codes = model.generate(prompt, logits_processor=[OnlyCharacterTwo()], max_new_tokens=3, **inputs)
    assert not codes[:, 5:].any()
    assert all((token == 2).all() for token in fed[1:])


def test_the_dictionary_holds_what_was_asked(model):
    output = model.generate(
        **conditions_of(model), max_length=6, return_dict_in_generate=True, output_logits=True, output_scores=True
    )
    assert output.sequences.shape[1] == 6
    assert len(output.logits) == len(output.scores) == 6
    assert isinstance(output.past_key_values, JukeboxCache)
    assert output.past_key_values.get_seq_length() == model.config.lyric_offset + 6


def test_a_cache_can_be_used_again(model):
    conditions = conditions_of(model)
    cache = JukeboxCache(model.config)
    first = model.generate(past_key_values=cache, **conditions)
    with pytest.raises(ValueError, match="give an empty cache"):
        model.generate(past_key_values=cache, **conditions)
    cache.reset()
    assert torch.equal(model.generate(past_key_values=cache, **conditions), first)


def test_upper_codes_and_lyrics_are_read_once(model):
    calls = []
    for name in ("conditioner", "lyrics_encoder", "timing_embedding"):
        if hasattr(model, name):
            getattr(model, name).register_forward_hook(lambda module, args, output: calls.append(module))
    model.generate(**conditions_of(model), max_length=8)
    assert len(calls) == len(set(calls))


def test_a_generation_config_says_how_long():
    model = random_prior("top")
    settings = GenerationConfig(max_length=9, do_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = model.generate(generation_config=settings)
    assert codes.shape == (1, 9) and settings.max_length == 9
    assert model.generate(generation_config=GenerationConfig(max_new_tokens=4)).shape == (1, 4)


def test_beams_keep_their_caches():
    model = random_prior("separate lyrics")
    inputs = inputs_of(model)
    prompt = inputs.pop("input_ids")[:, :9]
    with_cache, without = (
        model.generate(prompt, max_new_tokens=12, num_beams=3, use_cache=use_cache, **inputs)
        for use_cache in (True, False)
    )
    assert torch.equal(with_cache, without)


REFUSED = {
    "nothing to draw": ({"max_length": 5}, "0 codes after the 5 given.*room for 43"),
    "more than a context": ({"max_new_tokens": 44}, "44 codes after the 5 given.*room for 43"),
    "a generator with nothing to draw": ({"generator": torch.Generator(), "do_sample": False}, "nothing is drawn"),
    "too few generators": ({"generator": [torch.Generator()], "do_sample": True}, "1 generators for 2 samples"),
    "a generator with beams": ({"generator": torch.Generator(), "do_sample": True, "num_beams": 2}, "num_beams=2"),
    "a cache too small": (
        {"past_key_values": JukeboxCache(STYLES["top"], 6), "max_length": 30},
        "room for 6 positions",
    ),
    "another cache": ({"cache_implementation": "static"}, "cache of its own"),
    "padding": ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1]] * 2)}, "no padding"),
    "a typo": ({"artist_id": torch.tensor([1, 2])}, "artist_id"),
    "labels out of range": ({"artist_ids": torch.tensor([0, 99])}, "artist_ids holds 99"),
}


@pytest.mark.parametrize("settings, message", REFUSED.values(), ids=REFUSED)
def test_bad_settings_are_refused(settings, message):
    model = random_prior("top")
    prompt = inputs_of(model)["input_ids"][:, :5]
    with pytest.raises(ValueError, match=message):
        model.generate(prompt, **settings)
