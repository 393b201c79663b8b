"""``tiny``: a random llama with a byte-level tokenizer, made in code in an instant.

It knows nothing, but has every part of a real base model, so all code runs on it without any
file or download.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as FastTokenizer

_SEED = 20_251_120
_SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|pad|>")  # ids 256, 257, 258


def build_model(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Return the model: the same weights in every process, whatever the global seed."""
    config = LlamaConfig(
        vocab_size=256 + len(_SPECIAL_TOKENS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights, which we replace
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
            # Only parameters: the rotary frequencies, a buffer, stay in fp32 as in loaded models.
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def build_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer whose token i is the byte i, followed by begin, end and padding.

    The text of a special token is no special token: it is encoded byte by byte, like any other,
    so that decoding gives back every text.
    """
    tokenizer = Tokenizer(
        models.BPE(vocab={char: byte for byte, char in enumerate(_byte_alphabet())}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end, pad = _SPECIAL_TOKENS
    return FastTokenizer(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        model_max_length=1024,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def _byte_alphabet() -> list[str]:
    """Return the printable character that stands for each byte in GPT-2's byte-level coding.

    Bytes that are printable in Latin-1 stand for themselves; the others follow from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]
