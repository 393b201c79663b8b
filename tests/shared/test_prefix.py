"""The frozen prefix gives what the whole decoder gives, whatever a text is batched with."""

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from shared.base_model import BaseModel, load_base
from shared.config import BaseConfig
from shared.prefix import FrozenPrefix, batch_shape
from shared.state_cache import StateCache

ADAPT = ("q_proj", "v_proj")
TEXTS = [tuple(range(3, 3 + n)) for n in (5, 17, 9, 30, 16, 1, 44, 8, 23, 12)]


def cut_base() -> BaseModel:
    return load_base(BaseConfig(name="tiny", format="fp32", top_layers=2), ADAPT)


def prefix_of(base: BaseModel, limit: int) -> FrozenPrefix:
    return FrozenPrefix(base.model.get_decoder(), 2, torch.float32, base.width, StateCache(limit))


def padded(texts: list[tuple[int, ...]]) -> tuple[torch.Tensor, list[int]]:
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    return ids, [len(text) for text in texts]


def test_only_layers_above_the_cut_carry_loras() -> None:
    names = [linear.name for linear in cut_base().maps]
    assert names == [f"model.layers.{layer}.self_attn.{leaf}" for layer in (2, 3) for leaf in ADAPT]


def test_states_are_those_of_the_whole_decoder() -> None:
    base = cut_base()
    ids, lengths = padded(TEXTS)
    hidden = base.hidden_states(ids, lengths)
    for row, text in enumerate(TEXTS):
        whole = base.model.get_decoder()(input_ids=torch.tensor([text]), use_cache=False)
        torch.testing.assert_close(
            hidden[row, : len(text)], whole.last_hidden_state[0], rtol=1e-5, atol=1e-5
        )


def test_a_text_has_the_same_bits_in_any_company() -> None:
    base = cut_base()
    assert base.prefix is not None

    def fresh() -> FrozenPrefix:
        return prefix_of(base, 1 << 30)

    together = fresh().states(*padded(TEXTS))
    backwards = fresh().states(*padded(TEXTS[::-1]))
    for row, text in enumerate(TEXTS):
        alone = fresh().states(*padded([text]))
        assert torch.equal(together[row, : len(text)], alone[0])
        assert torch.equal(backwards[len(TEXTS) - 1 - row, : len(text)], alone[0])
        assert not together[row, len(text) :].any()


def test_a_batch_has_about_as_many_tokens_whatever_their_length() -> None:
    assert [batch_shape(tokens) for tokens in (1, 16, 17, 40, 64, 65, 128, 500)] == [
        (8, 16),
        (8, 16),
        (4, 32),
        (2, 48),
        (2, 64),
        (1, 80),
        (1, 128),
        (1, 512),
    ]


def test_a_text_is_run_once_and_comes_back_from_the_disk_with_the_same_bits() -> None:
    base = cut_base()
    room = (17 + 9 + 8) * base.width * 4  # for two or three of the texts
    small, large = prefix_of(base, room), prefix_of(base, 1 << 30)
    calls: list[int] = []
    hook = base.model.get_decoder().register_forward_pre_hook(lambda *_: calls.append(1))
    first = small.states(*padded(TEXTS))
    used = len(calls)
    again = small.states(*padded(TEXTS))
    assert len(calls) == used > 0
    hook.remove()
    assert torch.equal(first, again)
    assert torch.equal(first, large.states(*padded(TEXTS)))


def test_layers_of_mixed_attention_keep_their_masks() -> None:
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=4,
        layer_types=[
            "full_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
        ],
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    model.generation_config = GenerationConfig()
    decoder = model.get_decoder()
    ids = torch.arange(1, 25)[None]
    with torch.no_grad():
        whole = decoder(input_ids=ids, use_cache=False).last_hidden_state
        for cut in (1, 2, 3):
            parts = FrozenPrefix(decoder, cut, torch.float32, 32, StateCache(1 << 20))
            came = parts.finish(parts.states(ids, [24]))
            torch.testing.assert_close(came, whole, rtol=1e-5, atol=1e-5)
