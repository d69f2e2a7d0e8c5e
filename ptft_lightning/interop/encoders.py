"""BERT and RoBERTa: their tensors and configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.interop.family import Family, Heads, Only, Table, Values
from ptft_lightning.interop.settings import Settings

DENSE_CLASSIFIER: Table = {
    "head.dense.*": "classifier.dense.*",
    "head.classifier.*": "classifier.out_proj.*",
}


class Bert(Family):
    """BERT (Devlin et al. 2019)."""

    name = "bert"
    prefix = "bert."
    backbone: ClassVar[Table] = {
        "backbone.embedding.weight": "embeddings.word_embeddings.weight",
        "backbone.position.weight": "embeddings.position_embeddings.weight",
        "backbone.token_type.weight": "embeddings.token_type_embeddings.weight",
        "backbone.embedding_norm.*": "embeddings.LayerNorm.*",
        "backbone.layers.#.attention.qkv.*": (
            "encoder.layer.#.attention.self.query.*",
            "encoder.layer.#.attention.self.key.*",
            "encoder.layer.#.attention.self.value.*",
        ),
        "backbone.layers.#.attention.out.*": "encoder.layer.#.attention.output.dense.*",
        "backbone.layers.#.attention_norm.*": "encoder.layer.#.attention.output.LayerNorm.*",
        "backbone.layers.#.ffn.up.*": "encoder.layer.#.intermediate.dense.*",
        "backbone.layers.#.ffn.down.*": "encoder.layer.#.output.dense.*",
        "backbone.layers.#.ffn_norm.*": "encoder.layer.#.output.LayerNorm.*",
    }
    heads: ClassVar[Heads] = {
        "BertForMaskedLM": "masked",
        "BertForPreTraining": "next_sentence",
        "BertForSequenceClassification": "classification",
        "BertForTokenClassification": "tagging",
        "BertForQuestionAnswering": "question_answering",
        "BertModel": None,
    }
    unused = r"^(bert\.)?pooler\.|^cls\.seq_relationship\.|^cls\.predictions\.bias$"
    lent: ClassVar[dict[str, str]] = {
        "head.pooler.weight": "pooler.dense.weight",
        "head.pooler.bias": "pooler.dense.bias",
    }
    spare: ClassVar[dict[str, str]] = {"cls.predictions.decoder.bias": "cls.predictions.bias"}
    defaults: ClassVar[Values] = {
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "classifier_dropout": None,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    only: ClassVar[Only] = {"hidden_act": ("gelu",), "position_embedding_type": ("absolute", None)}

    def start(self, theirs: Settings) -> int:
        """Row of the position table that the first token reads."""
        return 0

    def read(self, theirs: Settings) -> TransformerConfig:
        """See `Family`."""
        start = self.start(theirs)
        return TransformerConfig(
            dim=theirs["hidden_size"],
            depth=theirs["num_hidden_layers"],
            heads=theirs["num_attention_heads"],
            hidden_dim=theirs["intermediate_size"],
            max_length=theirs["max_position_embeddings"] - start,
            norm_first=False,
            norm_eps=theirs["layer_norm_eps"],
            positions="learned",
            position_start=start,
            token_types=theirs["type_vocab_size"],
            embedding_norm=True,
            tie_embeddings=theirs["tie_word_embeddings"],
            dropout=theirs["hidden_dropout_prob"],
            attention_dropout=theirs["attention_probs_dropout_prob"],
        )

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """See `Family`."""
        own = config.attention_dropout
        return {
            "hidden_size": config.dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "intermediate_size": config.ffn_dim,
            "hidden_act": "gelu",
            "max_position_embeddings": config.position_start + config.max_length,
            "layer_norm_eps": config.norm_eps,
            "type_vocab_size": config.token_types,
            "tie_word_embeddings": config.tie_embeddings,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.dropout if own is None else own,
        }

    def head_table(self, head: str, tied: bool) -> Table:
        """See `Family`; untied, the projection has its own bias."""
        if head == "classification":
            return {"head.dense.*": "bert.pooler.dense.*", "head.classifier.*": "classifier.*"}
        own = {"head.projection.*": "cls.predictions.decoder.*"}
        return {
            "head.pooler.*": "bert.pooler.dense.*",
            "head.classifier.*": "cls.seq_relationship.*",
            "head.dense.*": "cls.predictions.transform.dense.*",
            "head.norm.*": "cls.predictions.transform.LayerNorm.*",
            **({"head.projection.bias": "cls.predictions.bias"} if tied else own),
        }

    def read_classification(self, theirs: Settings) -> dict[str, Any]:
        """The first token through a dense layer with tanh."""
        own = theirs["classifier_dropout"]
        dropout = theirs["hidden_dropout_prob"] if own is None else own
        return {"pooling": "first", "dropout": dropout, "transform": "tanh", "bias": True}

    def write_classification(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """See `Family`."""
        return {"classifier_dropout": task["dropout"]}


class Roberta(Bert):
    """RoBERTa (Liu et al. 2019): BERT whose positions count from behind the padding id."""

    name = "roberta"
    prefix = "roberta."
    heads: ClassVar[Heads] = {
        "RobertaForMaskedLM": "masked",
        "RobertaForSequenceClassification": "classification",
        "RobertaForTokenClassification": "tagging",
        "RobertaForQuestionAnswering": "question_answering",
        "RobertaModel": None,
    }
    unused = r"^(roberta\.)?pooler\.|^lm_head\.bias$"
    lent: ClassVar[dict[str, str]] = {}  # its classifiers have a layer of their own
    spare: ClassVar[dict[str, str]] = {"lm_head.decoder.bias": "lm_head.bias"}
    defaults: ClassVar[Values] = {**Bert.defaults, "pad_token_id": 1}

    def start(self, theirs: Settings) -> int:
        """See `Bert`."""
        return int(theirs["pad_token_id"]) + 1

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """See `Family`."""
        return {**super().write(config), "pad_token_id": config.position_start - 1}

    def head_table(self, head: str, tied: bool) -> Table:
        """See `Family`."""
        if head == "classification":
            return DENSE_CLASSIFIER
        own = {"head.projection.*": "lm_head.decoder.*"}
        return {
            "head.dense.*": "lm_head.dense.*",
            "head.norm.*": "lm_head.layer_norm.*",
            **({"head.projection.bias": "lm_head.bias"} if tied else own),
        }
