"""User embeddings: means of hidden states, and the space they are compared in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared import embedding, tiny
from shared.base_model import BaseModel
from shared.corpus.user import ProfileItem
from shared.embedding import EmbeddingSpace, embed_user
from shared.lora.layer import Parts
from shared.lora.slab import Slab
from shared.samples import history_samples


def items(*texts: str) -> list[ProfileItem]:
    return [ProfileItem(str(i), "headline", t, f"on {t}") for i, t in enumerate(texts)]


HISTORY = items("rain", "a long walk by the sea", "tea with a friend, then home", "x")


@torch.no_grad()
def expected_embedding(base: BaseModel, history: list[ProfileItem]) -> Tensor:
    """Average by transformers' own hidden states, one unpadded text at a time."""
    model = tiny.build_model()
    means = []
    for sample in history_samples(base, history):
        ids = torch.tensor([(sample.prompt + sample.answer)[:-1]])
        means.append(model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0))
    return torch.stack(means).mean(0)


def test_an_embedding_is_the_mean_over_items_of_the_mean_over_tokens(base: BaseModel) -> None:
    came = embed_user(base, HISTORY)
    assert came.shape == (base.width,)
    assert came.dtype == torch.float32
    torch.testing.assert_close(came, expected_embedding(base, HISTORY), rtol=1e-4, atol=1e-5)


def test_neither_padding_nor_batching_nor_order_changes_an_embedding(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = embed_user(base, HISTORY)
    alone = torch.stack([embed_user(base, [item]) for item in HISTORY]).mean(0)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, embed_user(base, HISTORY[::-1]), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(embedding, "EMBED_ROWS", 1)
    torch.testing.assert_close(together, embed_user(base, HISTORY), rtol=1e-4, atol=1e-5)


def test_people_with_other_histories_have_other_embeddings(base: BaseModel) -> None:
    one, other = embed_user(base, HISTORY), embed_user(base, items("stocks fell", "rates rose"))
    assert (one - other).norm() > 0.1 * one.norm()


def test_an_embedding_needs_no_gradient(base: BaseModel) -> None:
    assert not embed_user(base, HISTORY[:1]).requires_grad


def test_adapters_that_were_on_do_not_matter_once_they_are_off(base: BaseModel) -> None:
    before = embed_user(base, HISTORY[:2])
    private = Slab.initial(base.maps, 2, [1])
    private.rows.fill_(0.05)
    with base.stack.using(Parts(private=private.views())):
        assert not torch.allclose(before, embed_user(base, HISTORY[:1]), atol=1e-3)
    assert torch.equal(embed_user(base, HISTORY[:2]), before)


# The space


def clusters(users: int = 40, width: int = 12) -> Tensor:
    """Return embeddings with a large common part and unequal variances along random axes."""
    generator = torch.Generator().manual_seed(users)
    axes = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    spread = torch.linspace(3.0, 0.1, width)
    return 50.0 + (torch.randn(users, width, generator=generator) * spread) @ axes


def test_the_axes_are_the_leading_principal_axes() -> None:
    embeddings = clusters()
    space = EmbeddingSpace.fit(embeddings, 4)
    torch.testing.assert_close(space.mean, embeddings.mean(0))
    torch.testing.assert_close(space.basis.T @ space.basis, torch.eye(4), rtol=0, atol=1e-5)
    centred = embeddings - embeddings.mean(0)
    values, vectors = torch.linalg.eigh(centred.T.double() @ centred.double())
    leading = vectors[:, values.argsort(descending=True)[:4]]  # (width, 4)
    overlap = (leading.T @ space.basis.double()).abs()
    torch.testing.assert_close(overlap.diagonal(), torch.ones(4).double(), rtol=0, atol=1e-3)
    variances = (centred @ space.basis).var(0)
    assert variances.tolist() == sorted(variances.tolist(), reverse=True)


def test_places_are_unit_vectors_that_do_not_see_the_common_part() -> None:
    embeddings = clusters()
    space = EmbeddingSpace.fit(embeddings, 4)
    places = space.place(embeddings)
    assert places.shape == (40, 4)
    torch.testing.assert_close(places.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(space.place(embeddings[3]), places[3], rtol=1e-4, atol=1e-5)
    projected = (embeddings - embeddings.mean(0)) @ space.basis
    torch.testing.assert_close(
        places, projected / projected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5
    )
    moved = EmbeddingSpace.fit(embeddings + 7.0, 4)
    cosines = (moved.place(embeddings + 7.0) @ moved.place(embeddings + 7.0).T).flatten()
    torch.testing.assert_close(cosines, (places @ places.T).flatten(), rtol=1e-3, atol=1e-3)
    assert (places @ places.T).min() < -0.5  # not every two users look alike


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 20))
def test_the_space_has_no_more_axes_than_the_users_span(users: int, dimensions: int) -> None:
    space = EmbeddingSpace.fit(clusters(users), dimensions)
    assert space.basis.shape == (12, max(1, min(dimensions, users - 1)))
    assert torch.isfinite(space.place(clusters(users))).all()


def test_users_who_are_all_alike_have_a_place() -> None:
    space = EmbeddingSpace.fit(torch.ones(5, 6), 3)
    assert torch.isfinite(space.place(torch.ones(6))).all()
    assert torch.isfinite(space.place(torch.arange(6.0))).all()
