"""A row's bits do not depend on other rows; its numbers are those of plain algebra."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from shared import rowwise_product, tiny
from shared.base_model import BaseModel, load_base
from shared.cohort import Cohort, FusionWeights, Member, Trained, train_cohort
from shared.config import BaseConfig, Format, TrainingConfig
from shared.lora.layer import StackedLinear
from shared.lora.slab import Slab
from shared.precision import computing_device, multiplies_bf16
from shared.rowwise_product import ROWS, multiply, multiply_frozen, rounding_alone, rowwise
from shared.samples import Sample
from shared.training import Trainee

# The linear maps of SmolLM2, with which kernels were seen to sum in two or three orders.
SHAPES = [(576, 576), (576, 1536), (1536, 576)]
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COUNTS = st.integers(1, 3 * ROWS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).to(torch.bfloat16)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turned", [False, True])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_row_is_the_same_whatever_rows_are_there(
    shape: tuple[int, int], turned: bool, data: st.DataObject
) -> None:
    x, w = rounding_alone(*shape, torch.bfloat16)
    x = x.repeat(3, 1)[torch.randperm(3 * ROWS, generator=torch.Generator().manual_seed(1))]
    w = w.t().contiguous().t() if turned else w
    start = data.draw(COUNTS.map(lambda n: n - 1))
    count = data.draw(st.integers(1, 3 * ROWS - start))
    some = multiply(x[start : start + count], w)
    assert torch.equal(some, multiply(x, w)[start : start + count])


def test_rounding_alone_comes_of_a_product_that_would_be_zero() -> None:
    x, w = rounding_alone(301, 20, torch.bfloat16)
    assert not (x.double() @ w.double()).any()
    came = (x @ w).double()
    # Of fp32 sums of 150 terms about one; in the order of their columns most do not cancel at once.
    assert (came != 0).double().mean() > 0.5
    assert came.abs().max() < 1e-4


@pytest.mark.parametrize("count", [1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 700])
def test_split_or_at_once_it_is_the_product(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = matrix(count, 40, 1), matrix(40, 24, 2)
    exact = x.double() @ w.double()
    at_once = multiply(x, w)
    monkeypatch.setattr(rowwise_product, "_sums_alike", lambda n, w: False)
    for came in (at_once, multiply(x, w)):
        assert came.shape == (count, 24)
        # A sum of 40 products is rounded to 8 bits once, of its own size.
        assert (came.double() - exact).abs().max() <= exact.abs().max() / 256


@pytest.mark.parametrize("count", [3, ROWS + 3])
def test_its_gradient_is_that_of_the_product(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowwise_product, "_sums_alike", lambda n, w: False)
    x, w, by_y = matrix(count, 40, 1).requires_grad_(), matrix(40, 24, 2), matrix(count, 24, 3)
    (gradient,) = torch.autograd.grad(multiply_frozen(x, w), x, by_y)
    exact = by_y.double() @ w.double().t()
    assert (gradient.double() - exact).abs().max() <= exact.abs().max() / 256


def test_fp32_is_multiplied_as_ever() -> None:
    assert not rowwise(torch.float32, torch.device("cpu"))
    x, w = torch.randn(300, 64), torch.randn(64, 32)
    assert torch.equal(multiply(x, w), x @ w)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model as wide as SmolLM2, two layers deep."""
    tokenizer = tiny.build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=max(2048, len(tokenizer)),
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def people_of(rows: int, length: int) -> list[Trainee]:
    """Return five users with so many samples of about one length each, answers of any length."""
    draw = torch.Generator().manual_seed(rows * length)

    def sample() -> Sample:
        ids = torch.randint(5, 200, (length,), generator=draw).tolist()
        cut = int(torch.randint(1, length // 2, (1,), generator=draw))
        return Sample(tuple(ids[:cut]), tuple(ids[cut:]))

    return [Trainee(f"user {u}", tuple(sample() for _ in range(rows)), seed=u) for u in range(5)]


def random_slab(base: BaseModel, rank: int, users: int) -> Slab:
    """Return LoRAs without a zero, so that every gradient is there from the first step."""
    generator = torch.Generator().manual_seed(rank)
    numbers = torch.randn(users, Slab.parameters(base.maps, rank), generator=generator)
    return Slab(base.maps, rank, 0.05 * numbers)


# Where bf16 is emulated, a wide batch in it takes the better part of a minute.
EMULATED = () if multiplies_bf16(computing_device()) else pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "kind", "rows", "length", "rank"),
    [
        pytest.param(
            *(name, kind, *batch),
            marks=EMULATED if (name, kind) == ("wide", "bf16") and batch[0] > 1 else (),
        )
        for name in ("wide", "tiny")
        for kind in ("bf16", "int8", "nf4")
        for batch in ((1, 12, 1), (1, 30, 2), (4, 46, 2), (2, 121, 2))
    ],
)
def test_users_in_company_learn_to_the_bit_what_they_learn_alone(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: Format,
    rows: int,
    length: int,
    rank: int,
) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    path = str(folder) if name == "wide" else name
    config = BaseConfig(name=path, format=kind, top_layers=0, max_tokens=128)
    # Of the wide one not all linear maps carry LoRAs: the others have to sum alike as well.
    base = load_base(config, ("v_proj", "down_proj") if name == "wide" else ALL)
    sizes: list[int] = []
    train = Cohort._train

    def counted(cohort: Cohort, group: Sequence[Member]) -> None:
        sizes.append(len(group))
        train(cohort, group)

    monkeypatch.setattr(Cohort, "_train", counted)
    people, training = people_of(rows, length), TrainingConfig(epochs=2, batch_size=rows)
    start = random_slab(base, rank, 5)
    shared = FusionWeights(
        (*random_slab(base, 8, 2).loras(),),
        torch.rand(5, 2, generator=torch.Generator().manual_seed(3)),
        torch.tensor([False, True]),
    )

    def trained(chosen: list[int]) -> Trained:
        assert shared.values is not None
        own = replace(shared, values=shared.values[chosen])
        return train_cohort(
            base,
            [people[u] for u in chosen],
            replace(start, rows=start.rows[chosen]),
            training,
            own,
        )

    together = trained([3, 0, 4, 1, 2])
    assert max(sizes) > 1
    assert together.weights is not None
    for place, user in enumerate([3, 0, 4, 1, 2]):
        alone = trained([user])
        assert alone.weights is not None
        assert not torch.equal(alone.slab.rows[0], start.rows[user])
        assert torch.equal(alone.slab.rows[0], together.slab.rows[place])
        assert torch.equal(alone.weights[0], together.weights[place])


def test_a_map_in_the_stack_has_the_weights_of_the_base(folder: Path) -> None:
    """Some decoders read a map's weights beside calling it."""
    config = BaseConfig(name=str(folder), format="bf16", top_layers=0, max_tokens=128)
    base = load_base(config, ("v_proj",))
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for name in ("v_proj", "q_proj"):
        ours = base.model.get_submodule(f"model.layers.1.self_attn.{name}")
        assert isinstance(ours, StackedLinear)
        assert torch.equal(
            ours.weight, plain.get_submodule(f"model.layers.1.self_attn.{name}").weight
        )
        assert ours.bias is None


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_bases_keep_no_more_of_a_user_than_plain_ones(folder: Path, kind: Format) -> None:
    """Neither their weights nor what fills up their products counts as a user's activations."""
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    kept = {}
    for form in ("auto", kind):
        config = BaseConfig(name=str(folder), format=form, top_layers=0, max_tokens=128)
        base = load_base(config, ("v_proj", "down_proj"))
        cohort = Cohort(base, 2, TrainingConfig(epochs=1, batch_size=1))
        cohort.join(people_of(1, 30)[0], random_slab(base, 2, 1).rows[0])
        cohort.step()
        (kept[form],) = cohort._bytes.values()
    assert kept[kind] < 1.5 * kept["auto"]
