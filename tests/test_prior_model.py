"""A prior as a transformers model: batches, caches, saving, types, placement, and what it refuses."""

import pickle

import pytest
import torch
import torch._dynamo.testing
from prior_styles import STYLES, inputs_of, random_prior
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModel, TorchAoConfig

from jukebox_hf import JukeboxCache, JukeboxPriorConfig, JukeboxPriorModel, linear_jukebox
from jukebox_hf.linear_jukebox import JukeboxLinear, tiled_int8_product
from jukebox_hf.transformer_jukebox import eager_attention_forward


@pytest.fixture(params=STYLES)
def model(request) -> JukeboxPriorModel:
    return random_prior(request.param)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6):
    """Equal but for rounding, which is relative to the largest value."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


def settings_of(config) -> dict:
    """What a configuration says about the model, without what loading writes into it."""
    written = ("_name_or_path", "architectures", "dtype", "transformers_version")
    settings = config if isinstance(config, dict) else config.to_dict()
    return {
        name: settings_of(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in written
    }


@torch.no_grad()
def test_a_sample_is_what_it_is_alone(model):
    inputs = inputs_of(model, batch_size=3)
    together = model(**inputs, output_hidden_states=True)
    for row in range(3):
        alone = model(**{name: value[row : row + 1] for name, value in inputs.items()}, output_hidden_states=True)
        close(together.logits[row : row + 1], alone.logits)
        close(together.hidden_states[-1][row : row + 1], alone.hidden_states[-1])


@pytest.mark.parametrize("length", [1, 2, 9, 24])
@torch.no_grad()
def test_a_short_clip_is_the_start_of_a_long_one(model, length):
    inputs = inputs_of(model)
    whole = model(**inputs).logits
    inputs["input_ids"] = inputs["input_ids"][:, :length]
    close(model(**inputs).logits, whole[:, : model.config.lyric_offset + length])


@torch.no_grad()
def test_hidden_states_are_the_outputs_of_the_layers(model):
    inputs = inputs_of(model)
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda layer, args, output: seen.append((args[0], output[0])))
    output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert output.hidden_states[0] is seen[0][0]
    assert all(states is result for states, (_, result) in zip(output.hidden_states[1:], seen))


@torch.no_grad()
def test_a_list_asks_for_some_hidden_states(model):
    inputs = inputs_of(model)
    whole = model(**inputs, output_hidden_states=True).hidden_states
    some = model(**inputs, output_hidden_states=[2, -1]).hidden_states
    assert [state is not None for state in some] == [index in (2, len(whole) - 1) for index in range(len(whole))]
    assert torch.equal(some[2], whole[2]) and torch.equal(some[-1], whole[-1])
    assert model(**inputs).hidden_states is None
    with pytest.raises(ValueError, match="items 0 to"):
        model(**inputs, output_hidden_states=[len(whole)])


@torch.no_grad()
def test_the_first_layers_load_alone(model, tmp_path):
    inputs = inputs_of(model)
    expected = model(**inputs, output_hidden_states=True).hidden_states
    model.save_pretrained(tmp_path)
    part, loading = AutoModel.from_pretrained(tmp_path, num_hidden_layers=2, output_loading_info=True)
    assert len(part.layers) == 2
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert torch.equal(part(**inputs, output_hidden_states=True).hidden_states[2], expected[2])


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    inputs = inputs_of(model)
    model.save_pretrained(tmp_path)
    loaded, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, JukeboxPriorModel)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert settings_of(loaded.config) == settings_of(model.config)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    tied = loaded.lm_head.weight is loaded.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings


@torch.no_grad()
def test_unsaid_conditions_are_unknown(model):
    """No artist, no genre, the song's start, and the shortest trained song that holds the window."""
    config, inputs = model.config, inputs_of(model)
    bare = {name: value for name, value in inputs.items() if name in ("input_ids", "upper_codes", "lyric_ids")}
    said = dict(bare)
    if config.num_artists:
        said |= {"artist_ids": torch.zeros(2, dtype=torch.long)}
        said |= {"genre_ids": torch.tensor([[0] + [-1] * (config.max_genres - 1)] * 2)}
    if config.num_time_bins:
        shortest = max(config.min_duration * config.sampling_rate, config.sample_length)
        said |= {"total_length": torch.full((2,), int(shortest)), "offset": torch.zeros(2, dtype=torch.long)}
    assert torch.equal(model(**bare).logits, model(**said).logits)


@torch.no_grad()
def test_conditions_matter(model):
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    for name, value in inputs.items():
        if name == "input_ids":
            continue
        changed = value.clone()
        changed[..., 0] = value[..., 0] + 1 if name != "total_length" else value[..., 0] * 2
        if name == "offset":
            changed = value + 9000
        difference = (model(**inputs | {name: changed}).logits - expected).abs().amax()
        assert difference > 1e-4, name


def test_genres_are_summed_and_empty_slots_are_not_there():
    model = random_prior("top")
    embed = model.label_embedding
    artists = torch.tensor([3])
    both = embed(artists, torch.tensor([[1, 4, -1]]))
    close(both[0, 0], embed.artists.weight[3] + embed.genres.weight[1] + embed.genres.weight[4])


@torch.no_grad()
def test_the_cache_gives_what_the_window_gives(model):
    """Prefilled in unequal chunks, then step by step, to the window's end."""
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    tokens = model.decoder_inputs(inputs["input_ids"], inputs.get("lyric_ids"))[:, :-1]
    conditioning = model.condition(**{k: v for k, v in inputs.items() if k != "input_ids"}, batch_size=2)
    cache, logits = JukeboxCache(model.config), []
    for chunk in tokens.split([5, 1, 8, *[1] * (tokens.shape[1] - 14)], dim=1):
        logits.append(model(decoder_input_ids=chunk, past_key_values=cache, **conditioning).logits)
    close(torch.cat(logits, dim=1), expected)
    assert cache.get_seq_length() == tokens.shape[1]


@torch.no_grad()
def test_a_step_never_waits_for_the_host(model):
    class Watch(TorchDispatchMode):
        waits = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                self.waits = (*self.waits, func)
            return func(*args, **(kwargs or {}))

    inputs = inputs_of(model)
    conditioning = model.condition(**{k: v for k, v in inputs.items() if k != "input_ids"}, batch_size=2)
    cache = JukeboxCache(model.config)
    tokens = inputs["input_ids"][:, :1]
    with Watch() as watch:
        for _ in range(3):
            model(decoder_input_ids=tokens, past_key_values=cache, **conditioning)
    assert not watch.waits


@pytest.mark.parametrize("batch_size", [1, 2])
@torch.no_grad()
def test_one_graph_is_every_step(model, batch_size):
    inputs = inputs_of(model, batch_size)
    expected = model(**inputs).logits
    tokens = model.decoder_inputs(inputs["input_ids"], inputs.get("lyric_ids"))[:, :-1]
    conditioning = model.condition(**{k: v for k, v in inputs.items() if k != "input_ids"}, batch_size=batch_size)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    step = torch.compile(model.forward, fullgraph=True, backend=counter)
    cache = JukeboxCache(model.config)
    logits = [model(decoder_input_ids=tokens[:, :3], past_key_values=cache, **conditioning).logits]
    for token in tokens[:, 3:].split(1, dim=1):
        logits.append(step(decoder_input_ids=token.clone(), past_key_values=cache, **conditioning).logits)
    assert counter.frame_count == 1
    close(torch.cat(logits, dim=1), expected)


@torch.no_grad()
def test_cache_samples_repeat_and_select(model):
    inputs = inputs_of(model)
    tokens = model.decoder_inputs(inputs["input_ids"], inputs.get("lyric_ids"))
    conditioning = dict(model.condition(**{k: v for k, v in inputs.items() if k != "input_ids"}, batch_size=2))
    cache = JukeboxCache(model.config)
    model(decoder_input_ids=tokens[:, :13], past_key_values=cache, **conditioning)
    cache.batch_repeat_interleave(2)
    order = torch.tensor([3, 0])
    cache.batch_select_indices(order)
    rows = torch.tensor([1, 0])
    conditioning = {name: value[rows] for name, value in conditioning.items()}
    logits = model(decoder_input_ids=tokens[rows, 13:14], past_key_values=cache, **conditioning).logits
    expected = model(**inputs).logits
    close(logits, expected[rows, 13:14])


@torch.no_grad()
def test_cropped_and_reset_caches_go_on_as_if_nothing_had_been(model):
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    tokens = model.decoder_inputs(inputs["input_ids"], inputs.get("lyric_ids"))
    conditioning = model.condition(**{k: v for k, v in inputs.items() if k != "input_ids"}, batch_size=2)
    block_length = model.config.grid.block_length
    stop = 2 * block_length + 3
    cache = JukeboxCache(model.config)
    garbage = tokens.clone()
    garbage[:, 2 * block_length : stop] = model.config.start_token_id - 1
    model(decoder_input_ids=garbage[:, :stop], past_key_values=cache, **conditioning)
    with pytest.raises(ValueError, match="last block's 3 positions"):
        cache.crop(-4)
    cache.crop(-3)
    assert cache.get_seq_length() == 2 * block_length
    rest = model(decoder_input_ids=tokens[:, 2 * block_length : -1], past_key_values=cache, **conditioning).logits
    close(rest, expected[:, 2 * block_length :])
    for empty in (cache.reset, lambda: cache.crop(-cache.get_seq_length())):
        empty()
        assert cache.get_seq_length() == 0
        again = model(decoder_input_ids=tokens[:, :1], past_key_values=cache, **conditioning).logits
        close(again, expected[:, :1])


@torch.no_grad()
def test_what_a_crop_lost_a_second_crop_does_not_bring_back():
    model = random_prior("top")
    block_length, tokens = model.config.grid.block_length, torch.zeros(1, 14, dtype=torch.long)
    cache = JukeboxCache(model.config)
    model(decoder_input_ids=tokens[:, : 2 * block_length + 2], past_key_values=cache)
    cache.crop(-2)
    with pytest.raises(ValueError, match="last block's 0 positions"):
        cache.crop(-1)


def test_a_cache_of_another_batch_is_refused():
    model = random_prior("top")
    cache, token = JukeboxCache(model.config), torch.zeros(2, 1, dtype=torch.long)
    model(decoder_input_ids=token, past_key_values=cache)
    cache.reset()
    with pytest.raises(ValueError, match="2 samples and the batch has 1"):
        model(decoder_input_ids=token[:1], past_key_values=cache)


@torch.no_grad()
def test_a_model_may_lie_on_several_devices(model):
    """Every module on a device of its own: each gives and takes tensors of no other, as accelerate's hooks see to."""
    inputs = inputs_of(model)
    model.to("meta")

    def to_meta(module, args, kwargs):
        def move(x):
            return x.to("meta") if isinstance(x, torch.Tensor) else x

        return tree_map(move, args), tree_map(move, kwargs)

    for name, child in model.named_children():
        if name != "layers":
            child.register_forward_pre_hook(to_meta, with_kwargs=True)
    for layer in model.layers:
        layer.register_forward_pre_hook(to_meta, with_kwargs=True)
    assert model(**inputs).logits.shape[:2] == (2, model.config.sequence_length)


def test_eager_attention_does_not_overflow_in_half_precision():
    query = torch.full((1, 1, 1, 480), 14.0, dtype=torch.float16)
    attended, _ = eager_attention_forward(None, query, query, query, None, scaling=480**-0.5)
    assert attended.isfinite().all()


def test_a_cache_for_a_short_window_is_small():
    config = STYLES["top"]
    block_length = config.grid.block_length
    cache = JukeboxCache(config, max_length=block_length + 1)
    assert [layer.num_slots for layer in cache.layers[:3]] == [block_length, 2 * block_length, 2 * block_length]
    assert cache.get_max_length() == 2 * block_length
    with pytest.raises(ValueError, match="max_length=99"):
        JukeboxCache(config, max_length=99)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@torch.no_grad()
def test_a_step_past_the_end_of_the_cache_fails(compiled):
    model = random_prior("top")
    cache = JukeboxCache(model.config, max_length=1)
    step = torch.compile(model.forward, fullgraph=True) if compiled else model.forward
    inputs = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long), "past_key_values": cache}
    for _ in range(cache.get_max_length()):
        step(**inputs)
    with pytest.raises(RuntimeError, match="past the JukeboxCache's end"):
        step(**inputs)


def test_columns_of_5b_take_one_gigabyte_in_half_precision():
    with torch.device("meta"):
        cache = JukeboxCache(JukeboxPriorConfig())
        cache.early_initialization(
            batch_size=1, num_heads=8, head_dim=150, dtype=torch.float16, device=torch.device("meta")
        )
    sizes = {"row": 0, "column": 0, "previous": 0}
    for layer in cache.layers:
        sizes[layer.pattern.name] += layer.keys.nbytes + layer.values.nbytes
    assert sizes["column"] == 24 * 8192 * 2 * 1200 * 2 == 943_718_400
    assert sizes["row"] + sizes["previous"] < 0.025 * sizes["column"]


def test_gradient_checkpointing_changes_no_gradient(model):
    inputs = inputs_of(model)
    inputs["labels"] = inputs["input_ids"]
    model.train()
    model(**inputs).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in model.layers)
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name])
        assert parameter.grad.abs().sum() > 0, f"{name} has no gradient"


def test_losses_add_up_and_ignored_labels_do_not_count(model):
    config, inputs = model.config, inputs_of(model)
    codes = inputs["input_ids"]
    output = model(**inputs, labels=codes)
    if config.num_lyric_tokens:
        lyrics, music = config.num_lyric_tokens, codes.shape[1]
        expected = (0.4 * lyrics * output.lyric_loss + music * output.music_loss) / (lyrics + music)
        close(output.loss, expected)
    else:
        assert output.lyric_loss is None
        close(output.loss, output.music_loss)
    half = codes.clone()
    half[:, 10:] = -100
    logits = output.logits[:, config.lyric_offset :][:, :10]
    bits = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes[:, :10].flatten() + config.code_offset)
    close(model(**inputs, labels=half).music_loss, bits / torch.tensor(2.0).log())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_that_of_the_layers_only(model, dtype, tmp_path):
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == dtype
    for name, parameter in half.named_parameters():
        is_matrix = any(part in name for part in (".attention.", ".mlp."))
        assert parameter.dtype == (dtype if is_matrix else torch.float32), name
    output = half(**inputs, output_hidden_states=True)
    assert output.logits.dtype == torch.float32
    assert all(states.dtype == dtype for states in output.hidden_states)
    close(output.logits, expected, tolerance=0.1)
    assert (output.logits - expected).abs().max() > 0
    codes = half.generate(max_new_tokens=5, **{k: v for k, v in inputs.items() if k != "input_ids"})
    assert codes.shape[1] == 5


@torch.no_grad()
def test_int8_weights_change_little(model, tmp_path):
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    settings = {"dtype": torch.bfloat16, "quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    int8 = AutoModel.from_pretrained(tmp_path, **settings)
    assert int8.layers[0].mlp.fc1.weight.qdata.dtype == torch.int8
    logits = int8(**inputs).logits
    assert logits.dtype == torch.float32
    close(logits, expected, tolerance=0.05)


@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize("num_rows", [1, 3, 40])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "int8 with fp32"])
@torch.no_grad()
def test_compiled_rows_are_those_of_the_linear_layer(kind, num_rows, has_amx, monkeypatch):
    monkeypatch.setattr(linear_jukebox, "HAS_AMX", has_amx)
    torch.manual_seed(0)
    linear = JukeboxLinear(24, 40).to(torch.float32 if "fp32" in kind else torch.bfloat16)
    if "int8" in kind:
        quantize_(linear, Int8WeightOnlyConfig())
    rows = torch.randn(num_rows, 1, 24, dtype=linear.bias.dtype)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(linear, fullgraph=True, backend=backend)(rows)
    expected = linear(rows)
    assert compiled.dtype == rows.dtype and compiled.shape == expected.shape
    # Digits of 16 bits are the one thing that is not fp32's rounding.
    digits = "int8" in kind and has_amx
    close(compiled.float(), expected.float(), tolerance=1e-2 if "fp32" not in kind else 1e-4 if digits else 1e-6)
    usual = num_rows > 32 or (num_rows > 1 and (kind == "fp32" or not has_amx))
    assert usual == ("linear" in {getattr(node.target, "__name__", "") for node in graphs[0].graph.nodes})


def test_an_int8_product_rounds_each_row_to_16_bits():
    torch.manual_seed(0)
    matrix = torch.randint(-128, 128, (48, 80), dtype=torch.int8)
    rows = torch.randn(5, 80) * torch.tensor([1e5, 1, 1e-5, 0, 1e-40])[:, None]
    rows[1, 0] = 1000
    product = tiled_int8_product(matrix, rows).double()
    expected = rows.double() @ matrix.double().T
    step = rows.double().abs().amax(1, keepdim=True) / 32639
    limit = step / 2 * matrix.double().abs().sum(1) + 1e-6 * expected.abs()
    # What is smaller than any usual number of fp32 may become zero.
    limit += 80 * 128 * torch.finfo(torch.float32).tiny
    assert ((product - expected).abs() <= limit).all()
    assert product.isfinite().all()


@torch.no_grad()
def test_eager_attention_is_sdpa(model):
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    if model.config.lyrics_encoder_config is not None:
        assert model.config.lyrics_encoder_config._attn_implementation == "eager"
    close(model(**inputs).logits, expected)


@torch.no_grad()
def test_attentions_are_distributions_over_what_a_pattern_shows(model):
    inputs = inputs_of(model)
    output = model(**inputs, output_attentions=True)
    assert len(output.attentions) == model.config.num_hidden_layers
    for weights in output.attentions:
        close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    readers = [index for index, letter in enumerate(model.config.layer_patterns) if letter in "xPD"]
    if model.config.num_lyric_tokens:
        assert list(output.lyric_attentions) == readers
        for weights in output.lyric_attentions.values():
            codes = inputs["input_ids"].shape[1]
            assert weights.shape == (2, model.config.num_attention_heads, codes, model.config.num_lyric_tokens)
    else:
        assert output.lyric_attentions is None


@torch.no_grad()
def test_it_can_be_pickled_after_use(model):
    inputs = inputs_of(model)
    expected = model(**inputs, output_hidden_states=True, output_attentions=True).logits
    assert torch.equal(pickle.loads(pickle.dumps(model))(**inputs).logits, expected)


@torch.no_grad()
def test_offloaded_layers_compute_the_same(model, tmp_path):
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "model")
    device_map = {name: "cpu" for name, _ in model.named_children()}
    device_map["layers"] = "disk"
    offloaded = AutoModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "disk")
    close(offloaded(**inputs).logits, expected)
    prompt = {k: v for k, v in inputs.items() if k != "input_ids"}
    assert torch.equal(
        offloaded.generate(inputs["input_ids"][:, :9], max_new_tokens=3, **prompt),
        model.generate(inputs["input_ids"][:, :9], max_new_tokens=3, **prompt),
    )


@torch.no_grad()
def test_all_on_disk(model, tmp_path):
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "model")
    offloaded = AutoModel.from_pretrained(tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "disk")
    close(offloaded(**inputs).logits, expected)
    prompt = {k: v for k, v in inputs.items() if k != "input_ids"}
    assert offloaded.generate(inputs["input_ids"][:, :9], max_new_tokens=2, **prompt).shape[1] == 11


def test_initial_weights_follow_the_original():
    model = JukeboxPriorModel(STYLES["separate lyrics"])
    config, encoder = model.config, model.lyrics_encoder
    expected = {
        model.embed_tokens.weight: 0.02 * config.init_scale,
        model.embed_positions.weight: 0.01 * config.init_scale,
        model.label_embedding.artists.weight: 0.01 * config.init_scale,
        model.layers[0].attention.qkv_proj.weight: 0.02 * config.init_scale,
        model.layers[0].attention.out_proj.weight: 0.02 * config.init_scale,
        model.layers[1].mlp.fc1.weight: 0.02 * config.init_scale,
        encoder.embed_positions.weight: 0.01 * 0.7,
        encoder.layers[0].mlp.fc1.weight: 0.02 * 0.7,
        encoder.state_proj.weight: 0.02 * 0.7,
        encoder.lm_head.weight: 0.02 * config.init_scale,
    }
    for weight, deviation in expected.items():
        assert weight.std().item() == pytest.approx(deviation, rel=0.15)
    (cross,) = (layer for layer in model.layers if layer.attention.is_cross)
    assert not cross.attention.out_proj.weight.any() and not cross.mlp.fc2.weight.any()
    assert cross.attention.q_proj.weight.any()
    assert all(not parameter.any() for name, parameter in model.named_parameters() if name.endswith("proj.bias"))


REFUSED = {
    "no input": ("top", {"input_ids": None}, "either input_ids"),
    "code too high": ("top", {"input_ids": torch.tensor([[3, 32], [0, 0]])}, "holds 32.*32 codes.*0 to 31"),
    "code below 0": ("top", {"input_ids": torch.tensor([[3, -1], [0, 0]])}, "holds -1"),
    "codes as floats": ("top", {"input_ids": torch.zeros(2, 8)}, "float32"),
    "more than a context": ("top", {"input_ids": torch.zeros(2, 49, dtype=torch.long)}, "49 codes.*48"),
    "no codes": ("top", {"input_ids": torch.zeros(2, 0, dtype=torch.long)}, "at least one"),
    "upper codes for a top prior": ("top", {"upper_codes": torch.zeros(2, 12, dtype=torch.long)}, "top prior"),
    "no upper codes": ("upsampler", {"upper_codes": None}, "12 codes of level 2"),
    "too few upper codes": ("upsampler", {"upper_codes": torch.zeros(2, 11, dtype=torch.long)}, "11 codes.*the 12"),
    "an upper code too high": ("upsampler", {"upper_codes": torch.full((2, 12), 40)}, "holds 40"),
    "too many genres": ("top", {"genre_ids": torch.zeros(2, 4, dtype=torch.long)}, "up to 3"),
    "unknown genre id": ("top", {"genre_ids": torch.tensor([[12], [0]])}, "genre_ids"),
    "unknown artist id": ("top", {"artist_ids": torch.tensor([0, 30])}, "artist_ids holds 30.*0 to 29"),
    "artists for another batch": ("top", {"artist_ids": torch.tensor([0, 1, 2])}, "3 samples.*batch has 2"),
    "song too short": ("top", {"total_length": torch.tensor([9000, 999])}, "total_length=999 samples.*give the whole"),
    "song too long": ("top", {"total_length": torch.tensor([9000, 600000])}, "total_length=600000"),
    "offset after the end": ("top", {"offset": torch.tensor([0, 30000])}, "offset=30000.*0 to"),
    "window after the end": ("top", {"total_length": torch.tensor([59999] * 2), "offset": torch.tensor([0, 55000])},
                             "end after"),
    "no lyrics": ("shared lyrics", {"lyric_ids": None}, "give lyric_ids.*16"),
    "no lyrics for the encoder": ("separate lyrics", {"lyric_ids": None}, "give lyric_ids.*16"),
    "lyrics too short": ("shared lyrics", {"lyric_ids": torch.zeros(2, 15, dtype=torch.long)}, "16 characters"),
    "unknown character": ("shared lyrics", {"lyric_ids": torch.full((2, 16), 20)}, "lyric_ids holds 20"),
    "lyrics for a deaf model": ("top", {"lyric_ids": torch.zeros(2, 16, dtype=torch.long)}, "reads no lyrics"),
    "labels for an unlabelled model": ("unlabelled", {"artist_ids": torch.zeros(2, dtype=torch.long)},
                               "without labels"),
    "a target too high": ("top", {"labels": torch.full((2, 48), 32)}, "labels holds 32"),
    "a target below 0": ("shared lyrics", {"labels": torch.full((2, 48), -1)}, "labels holds -1"),
    "genres as a list": ("top", {"genre_ids": [[1], [2]]}, "genre_ids is list"),
    "lyrics as floats": ("shared lyrics", {"lyric_ids": torch.zeros(2, 16)}, "lyric_ids is torch.float32"),
    "a song that fp32 rounds to the longest": ("top", {"total_length": torch.tensor([60000, 9000])}, "less than 60 s"),
    "too few targets": ("top", {"labels": torch.zeros(2, 5, dtype=torch.long)}, r"\(2, 5\)"),
}  # fmt: skip


@pytest.mark.parametrize("style, changes, message", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_with_the_number_and_the_fix(style, changes, message):
    model = random_prior(style)
    with pytest.raises(ValueError, match=message):
        model(**inputs_of(model) | changes)


def test_a_cache_that_is_full_or_out_of_place_is_refused():
    model = random_prior("top")
    cache = JukeboxCache(model.config, max_length=8)
    inputs = inputs_of(model)
    with pytest.raises(ValueError, match="do not fit into a cache of 12"):
        model(decoder_input_ids=inputs["input_ids"], past_key_values=cache)
    with pytest.raises(ValueError, match="decoder_input_ids"):
        model(**inputs, past_key_values=cache)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_blocks": 7}, "num_blocks=7"),
        ({"attention_pattern": "rcy"}, "attention_pattern='rcy'"),
        ({"attention_pattern": "rcx"}, "attention_pattern='rcx'"),
        ({"attention_pattern": "rcP"}, "attention_pattern='rcP'"),
        ({"num_artists": 0}, "num_artists=0"),
        ({"min_duration": 9.0, "max_duration": 5.0}, "min_duration"),
        ({"num_lyric_tokens": 16}, "lyric_vocab_size=0"),
        ({"num_lyric_tokens": 16, "lyric_vocab_size": 9, "lyrics_encoder_config": {"num_blocks": 3}}, "16"),
        ({"conditioner_config": {"strides": [2, 5]}}, "strides"),
        ({"hidden_size": 0}, "hidden_size=0"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        JukeboxPriorConfig(**STYLES["top"].to_diff_dict() | changes)
