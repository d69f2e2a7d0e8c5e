"""One document a row and back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.backbones.unpacking import document_places, pack_again, unpack

ROW = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def packed(rows: list[list[int]]) -> torch.Tensor:
    """Documents of rows with such lengths, padded."""
    width = max(sum(lengths) for lengths in rows)
    out = torch.zeros(len(rows), width, dtype=torch.long)
    for row, lengths in zip(out, rows, strict=True):
        numbers = [n for n, length in enumerate(lengths, 1) for _ in range(length)]
        row[: len(numbers)] = torch.tensor(numbers)
    return out


@given(st.lists(ROW, min_size=1, max_size=3))
def test_every_document_has_its_row_and_finds_its_way_back(rows):
    documents = packed(rows)
    tokens = torch.arange(1, documents.numel() + 1).view_as(documents)
    places = document_places(documents)
    found = [
        [token for token, place in zip(row, at, strict=True) if place >= 0]
        for row, at in zip(unpack(tokens, places).tolist(), places.tolist(), strict=True)
    ]
    wanted = [
        tokens[r][documents[r] == n].tolist()
        for r, lengths in enumerate(rows)
        for n in range(1, len(lengths) + 1)
    ]
    assert found == wanted
    back = pack_again(unpack(tokens, places), places, (documents.shape[0], documents.shape[1]))
    assert back.equal(tokens * (documents > 0))


def test_gradients_go_the_same_way():
    documents = torch.tensor([[1, 1, 2, 0], [1, 2, 2, 2]])
    values = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    places = document_places(documents)
    pack_again(unpack(values, places), places, (2, 4)).pow(2).sum().backward()
    assert torch.allclose(values.grad, 2 * values * (documents > 0)[..., None])


def test_of_padding_alone_something_is_left_to_read():
    assert document_places(torch.zeros(2, 3, dtype=torch.long)).tolist() == [[0, 1, 2], [3, 4, 5]]
