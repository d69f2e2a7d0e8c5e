"""A bundle as an ONNX graph that onnxruntime computes with; compared before it is kept."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.interop.compare import SAMPLES, random_rows, token_logits
from ptft_lightning.interop.families import TASKS, UNTOLD, build_parts
from ptft_lightning.objectives.base import PretrainHead
from ptft_lightning.objectives.replaced import ALONE
from ptft_lightning.objectives.sentence_pairs import NextSentence, SentenceOrder
from ptft_lightning.tasks.base import Task
from ptft_lightning.tasks.matching import Matching
from ptft_lightning.tasks.matching_head import MatchingHead
from ptft_lightning.tasks.multilabel import MultiLabel
from ptft_lightning.tasks.pooling import PooledHead, pool
from ptft_lightning.tasks.question_answering import SpanHead
from ptft_lightning.tasks.regression import Regression, RegressionHead
from ptft_lightning.tasks.tagging import Tagging
from ptft_lightning.tasks.word_head import WordHead

GRAPH = "model.onnx"
LARGE = 15 * 10**8  # bytes that fit in one file of that format; more lie beside it
NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit
SENTENCE_PAIRS = (NextSentence.name, SentenceOrder.name)
WHOLE: dict[str, type[Task]] = {t.name: t for t in (MultiLabel, Regression, Matching)}


class Graph(nn.Module):
    """What is exported: rows padded on the right -> logits."""

    def __init__(self, backbone: Backbone, head: nn.Module | None) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """(B, T) int64 each -> (B, T, outputs) logits of what predicts tokens or tags them, (B, T)
        of each end of an answer, (B, outputs) of what reads a whole text, as numbers or (B, dim)
        vectors of length 1; (B, T, dim) hidden states of a bundle without a head."""
        hidden: Tensor = self.backbone(input_ids, attention_mask, None, token_type_ids)
        if self.head is None:
            return hidden
        if isinstance(self.head, PretrainHead):
            return self.head.logits(hidden, self.backbone.embedding.weight)
        if (each := token_logits(self.head, hidden)) is not None:
            return each.unbind(-1) if isinstance(self.head, SpanHead) else each
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        at = {"row": rows, "start": torch.zeros_like(rows), "end": attention_mask.sum(1)}
        if isinstance(self.head, MatchingHead):
            return F.normalize(pool(hidden, at, self.head.pooling).float(), dim=-1)
        out = cast(PooledHead, self.head).project(hidden, at)
        if isinstance(self.head, RegressionHead):
            return out * self.head.scale + self.head.center
        return out

    @property
    def names(self) -> list[str]:
        """Of the outputs."""
        if isinstance(self.head, SpanHead):
            return ["start_logits", "end_logits"]
        if isinstance(self.head, MatchingHead):
            return ["sentence_embedding"]
        return ["last_hidden_state" if self.head is None else "logits"]

    @property
    def pooled(self) -> bool:
        """Whether there is one output a row, not one a token."""
        return isinstance(self.head, (PooledHead, MatchingHead))


def write_onnx(bundle: Bundle, folder: Path) -> str:
    """Write the graph, its weights inside or beside it, the tokenizer and `config.json`.

    Returns:
        What was compared, in words.

    Raises:
        UserError: the extra is missing, the bundle's head or backbone cannot be a graph, or
            onnxruntime computes something else.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(
            f"--format onnx needs {' and '.join(missing)}: pip install 'ptft-lightning[onnx]'"
        )
    graph = build_graph(bundle)
    folder.mkdir(parents=True)
    _trace(graph, bundle, folder / GRAPH)
    bundle.tokenizer.save(folder)
    _compare_tokens(bundle, folder / "tokenizer.json")
    write_atomically(folder / "config.json", _json(bundle, graph).encode())
    worst = _compare(graph, bundle, folder / GRAPH)
    return f"{GRAPH}, as onnxruntime computes it (largest difference of logits {worst:.2g})"


def build_graph(bundle: Bundle) -> Graph:
    """The net of a bundle with its weights, in evaluation and float32.

    Raises:
        UserError: no Transformer; a head that gives no logits for a text or for each token; a
            tuning that reads texts in a way of its own.
    """
    shape, head = bundle.config["backbone"], bundle.config["head"]
    if shape["kind"] != "transformer":
        raise UserError(f"--format onnx takes transformers, '{bundle.path}' is a {shape['kind']}")
    if shape["config"].get("prefix_lm"):
        raise UserError(f"'{bundle.path}' is a prefix-LM: --format onnx has no prompt apart")
    if reads := bundle.config.get("reads"):
        raise UserError(f"'{bundle.path}' reads {reads}: --format onnx needs a plain model")
    parts = build_parts(bundle.config)
    backbone = cast(Backbone, parts["backbone"])
    if head["name"] == Tagging.name and head["config"]["crf"]:
        raise UserError(
            f"'{bundle.path}' has a CRF, which chooses the tags of a sentence together: --format "
            "onnx takes taggers without one"
        )
    if (task := WHOLE.get(head["name"])) is not None:
        parts["head"] = task.of(head["config"]).build_head(backbone, head["labels"])
    pairs_alone = head["name"] in SENTENCE_PAIRS and not head["config"].get("rate")
    tokenless = pairs_alone or head["name"] == ALONE
    if head["name"] is not None and ("head" not in parts or tokenless):
        raise UserError(
            f"'{bundle.path}' learnt '{head['name']}', which is no logits of tokens: "
            f"--format onnx takes bundles that predict tokens, and of {', '.join(TASKS | WHOLE)}"
        )
    parts.load_state_dict({name: bundle.tensor(name).float() for name in parts.state_dict()})
    return Graph(backbone, dict(parts).get("head")).eval().requires_grad_(False)


def _compare_tokens(bundle: Bundle, file: Path) -> None:
    """The file alone, as others read it, must give the bundle's tokens."""
    alone = tokenizers.Tokenizer.from_file(str(file))
    ours = bundle.tokenizer.encode([*SAMPLES])
    for text, ids in zip(SAMPLES, ours, strict=True):
        if alone.encode(text, add_special_tokens=False).ids != ids:
            raise UserError(
                f"'{bundle.path}' normalises text before its tokenizer reads it, which those who "
                f"read the graph's tokenizer.json alone do not: '{text}'"
            )


def _inputs(rows: list[list[int]], bundle: Bundle) -> dict[str, Tensor]:
    """Rows of ids, padded on the right, as the graph takes them."""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(real.shape, bundle.tokenizer.pad, np.int64)
    ids[real] = np.concatenate(rows)
    given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real).long()}
    if bundle.config["backbone"]["config"]["token_types"] > 1:
        second = np.arange(real.shape[1]) >= lengths[:, None] // 2
        given["token_type_ids"] = torch.from_numpy(second & real).long()
    return given


def _trace(graph: Graph, bundle: Bundle, file: Path) -> None:
    """Batch and length stay open."""
    given = _inputs([[bundle.tokenizer.pad] * 5] * 3, bundle)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the exporter talks of itself
    with contextlib.ExitStack() as after, warnings.catch_warnings():
        after.callback(logger.setLevel, level)
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            tuple(given.values()),
            str(file),
            input_names=list(given),
            output_names=graph.names,
            dynamic_shapes=[{0: batch, 1: length} for _ in given],
            dynamo=True,
            external_data=sum(map(_bytes, graph.parameters())) > LARGE,
            verbose=False,
        )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _compare(graph: Graph, bundle: Bundle, file: Path) -> float:
    """The largest difference on rows of random tokens, some of them padded."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    rows = random_rows(bundle)
    for some in (rows, rows[:1], rows[1:2]):
        given = _inputs(some, bundle)
        theirs = session.run(None, {name: value.numpy() for name, value in given.items()})
        found = graph(*given.values())
        real = slice(None) if graph.pooled else given["attention_mask"].bool().numpy()
        for mine, wanted in zip([found] if torch.is_tensor(found) else found, theirs, strict=True):
            ours = mine.numpy()
            difference = float(np.abs(ours[real] - wanted[real]).max())
            if not difference <= TOLERANCE * max(1.0, float(np.abs(ours[real]).max())):
                raise UserError(
                    f"onnxruntime {onnxruntime.__version__} computes other logits from the export "
                    f"(by up to {difference:.3g}): it is not kept, please report this"
                )
            worst = max(worst, difference)
    return worst


def _json(bundle: Bundle, graph: Graph) -> str:
    """What a program must know to use the graph."""
    shape, head = bundle.config["backbone"]["config"], bundle.config["head"]
    said = {
        "head": head["name"],
        "labels": [] if isinstance(graph.head, MatchingHead) else head.get("labels") or [],
        # Of a word's tokens, those that have its logits: first, last, or the mean of all.
        **({"word_logits": graph.head.pooling} if isinstance(graph.head, WordHead) else {}),
        **{
            key: known
            for key in UNTOLD.get(head["name"], ())
            if key != "pooling" and (known := head["config"].get(key)) is not None
        },
        **bundle.config.get("found", {}),
        "max_length": shape["max_length"],
        "pad_token_id": bundle.tokenizer.pad,
        "padding_side": "right",
        "bundle": bundle.hash,
    }
    return json.dumps(said, indent=1, ensure_ascii=False)
