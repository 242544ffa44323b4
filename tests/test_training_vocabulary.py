"""New names for a trained prior."""

import pytest
import torch
from training_parts import tiny_prior

from jukebox_hf import JukeboxPriorModel, JukeboxTokenizer
from jukebox_hf.training import extend_vocabulary


def _labelled(version: str, spare: int = 0):
    slots = 3 if version == "v2" else 1
    tokenizer = JukeboxTokenizer.from_labels(["Vela", "Anna"], ["Folk"], versions=[version], max_genres=slots)
    return tiny_prior(num_artists=3 + spare, num_genres=2, max_genres=slots), tokenizer


@pytest.mark.parametrize("spare", [0, 1, 4])
@pytest.mark.parametrize("version", ["v2", "v3"])
def test_new_names_start_as_unknown_and_old_ones_stay(version, spare, tmp_path):
    prior, tokenizer = _labelled(version, spare)
    before = {name: weight.clone() for name, weight in prior.state_dict().items()}
    tokenizer = extend_vocabulary(prior, tokenizer, ["Anna", "Crux", "Dorn", "crux"], ["folk", "Slow Waltz"])
    assert [tokenizer.artist_id(name) for name in ("Vela", "Anna", "Crux", "Dorn")] == [1, 2, 3, 4]
    words = [2, 3, -1] if version == "v2" else [2]
    assert tokenizer.genre_ids("Slow Waltz") == words and tokenizer.genre_ids("Folk")[0] == 1
    assert (prior.config.num_artists, prior.config.num_genres) == (max(5, 3 + spare), max(words) + 1)
    for name, weight in prior.state_dict().items():
        if "label_embedding" in name:
            known = 3 if "artists" in name else 2
            new = slice(known, 5 if "artists" in name else max(words) + 1)
            assert torch.equal(weight[:known], before[name][:known])
            assert torch.equal(weight[new], before[name][:1].expand_as(weight[new]))
        else:
            assert torch.equal(weight, before[name])
    prior.save_pretrained(tmp_path)
    codes = torch.zeros(1, 8, dtype=torch.long)
    logits = [
        JukeboxPriorModel.from_pretrained(tmp_path)(codes, artist_ids=torch.tensor([artist])).logits
        for artist in (0, 4, 1)
    ]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    prior(codes, artist_ids=torch.tensor([4]), labels=codes).loss.backward()
    assert prior.label_embedding.artists.weight.grad[4].any()


def test_a_prior_without_labels_and_a_tokenizer_of_several_are_refused():
    prior, tokenizer = _labelled("v3")
    with pytest.raises(ValueError, match="without labels"):
        extend_vocabulary(tiny_prior(), tokenizer, [], [])
    several = JukeboxTokenizer.from_labels(["Vela"], ["Folk"], versions=["v2", "v3"])
    with pytest.raises(ValueError, match=r"versions=\['v2', 'v3'\]"):
        extend_vocabulary(prior, several, [], [])
