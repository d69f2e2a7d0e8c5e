"""ModernBERT: its tensors and config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.interop.family import Family, Heads, Only, Table, Values
from ptft_lightning.interop.settings import Settings, write_rope


class ModernBert(Family):
    """ModernBERT (Warner et al. 2024): rotary, gated, local and global attention in turn."""

    name = "modernbert"
    prefix = "model."
    backbone: ClassVar[Table] = {
        "backbone.embedding.weight": "embeddings.tok_embeddings.weight",
        "backbone.embedding_norm.*": "embeddings.norm.*",
        "backbone.layers.#.attention.qkv.*": "layers.#.attn.Wqkv.*",
        "backbone.layers.#.attention.out.*": "layers.#.attn.Wo.*",
        "backbone.layers.#.attention_norm.*": "layers.#.attn_norm.*",
        "backbone.layers.#.ffn.up.*": "layers.#.mlp.Wi.*",
        "backbone.layers.#.ffn.down.*": "layers.#.mlp.Wo.*",
        "backbone.layers.#.ffn_norm.*": "layers.#.mlp_norm.*",
        "backbone.final_norm.*": "final_norm.*",
    }
    heads: ClassVar[Heads] = {
        "ModernBertForMaskedLM": "masked",
        "ModernBertForSequenceClassification": "classification",
        "ModernBertModel": None,
    }
    defaults: ClassVar[Values] = {
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        "classifier_dropout": 0.0,
        "classifier_pooling": "cls",
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "tie_word_embeddings": True,
    }
    only: ClassVar[Only] = {"classifier_activation": ("gelu",), "decoder_bias": (True,)}
    thetas: ClassVar[dict[str, float]] = {
        "full_attention": 160_000.0,
        "sliding_attention": 10_000.0,
    }

    def read(self, theirs: Settings) -> TransformerConfig:
        """See `Family`."""
        bias = theirs["norm_bias"]
        biases = ("attention_bias", "mlp_bias", "classifier_bias")
        theirs.require(dict.fromkeys(biases, (bias,)))
        windowed = self._windowed(theirs)
        full, local = (self._rope(theirs, kind) for kind in self.thetas)
        if windowed and full["rope_scaling"] != local["rope_scaling"]:
            theirs.require({"rope_parameters": ("the same stretch for all layers",)})
        return TransformerConfig(
            dim=theirs["hidden_size"],
            depth=theirs["num_hidden_layers"],
            heads=theirs["num_attention_heads"],
            hidden_dim=theirs["intermediate_size"],
            max_length=theirs["max_position_embeddings"],
            first_norm=False,
            norm_eps=theirs["norm_eps"],
            activation=theirs.choose("hidden_activation", {"gelu": "geglu", "silu": "swiglu"}),  # type: ignore[arg-type]
            **full,
            window=theirs["local_attention"] // 2 if windowed else None,
            window_layers=windowed or None,
            window_rope_theta=local["rope_theta"] if windowed else None,
            embedding_norm=True,
            tie_embeddings=theirs["tie_word_embeddings"],
            bias=bias,
            dropout=theirs["embedding_dropout"],
            attention_dropout=theirs["attention_dropout"],
            ffn_dropout=theirs["mlp_dropout"],
        )

    def _windowed(self, theirs: Settings) -> list[int]:
        every, depth = theirs["global_attn_every_n_layers"], theirs["num_hidden_layers"]
        kinds = theirs.get("layer_types")
        if kinds is None:
            return [layer for layer in range(depth) if layer % every]
        return [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]

    def _rope(self, theirs: Settings, kind: str) -> dict[str, Any]:
        older = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
        found = (theirs.get("rope_parameters") or {}).get(kind) or theirs.get("rope_scaling") or {}
        theta = theirs.get(older[kind]) or self.thetas[kind]
        return theirs.rope(theta, {"rope_type": "default", "rope_theta": theta, **found})

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """See `Family`; periodic layers also in the form of older releases."""
        windowed = [config.is_windowed(layer) for layer in range(config.depth)]
        rope = write_rope(config)
        periods = (n for n in range(1, config.depth + 1))
        every = next(
            (n for n in periods if [bool(i % n) for i in range(config.depth)] == windowed), None
        )
        own = config.attention_dropout
        return {
            "hidden_size": config.dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "intermediate_size": config.ffn_dim,
            "hidden_activation": "silu" if config.activation == "swiglu" else "gelu",
            "max_position_embeddings": config.max_length,
            "norm_eps": config.norm_eps,
            **dict.fromkeys(
                ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), config.bias
            ),
            "decoder_bias": True,
            "layer_types": ["sliding_attention" if w else "full_attention" for w in windowed],
            **({} if every is None else {"global_attn_every_n_layers": every}),
            "local_attention": 2 * (config.window or 64),
            "global_rope_theta": config.rope_theta,
            "local_rope_theta": config.window_rope_theta or config.rope_theta,
            **{k: v for k, v in rope.items() if k == "rope_scaling"},
            "tie_word_embeddings": config.tie_embeddings,
            "embedding_dropout": config.dropout,
            "attention_dropout": config.dropout if own is None else own,
            "mlp_dropout": config.ffn_dropout,
        }

    def head_table(self, head: str, tied: bool) -> Table:
        """See `Family`."""
        shared: Table = {"head.dense.*": "head.dense.*", "head.norm.*": "head.norm.*"}
        if head == "classification":
            return {**shared, "head.classifier.*": "classifier.*"}
        return {**shared, "head.projection.*": "decoder.*"}

    def read_classification(self, theirs: Settings) -> dict[str, Any]:
        """Pooled, then dense, GELU and norm."""
        pooling = theirs.choose("classifier_pooling", {"cls": "first", "mean": "mean"})
        dropout = theirs["classifier_dropout"]
        return {"pooling": pooling, "dropout": dropout, "transform": "gelu", "bias": True}

    def write_classification(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """See `Family`."""
        pooling = "mean" if task["pooling"] == "mean" else "cls"
        return {"classifier_dropout": task["dropout"], "classifier_pooling": pooling}
