"""GPT-2, Llama, Qwen2 and Qwen3: their tensors and configs."""

from __future__ import annotations

from typing import Any, ClassVar

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.interop.family import Family, Heads, Only, Table, Values
from ptft_lightning.interop.settings import Settings, write_rope

GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
GATES = {"silu": "swiglu", "gelu": "geglu"}


class Decoder(Family):
    """What they share: a projection without bias, the last token for classification."""

    def head_table(self, head: str, tied: bool) -> Table:
        """See `Family`."""
        if head == "classification":
            return {"head.classifier.*": "score.*"}
        return {} if tied else {"head.projection.*": "lm_head.*"}

    def read_classification(self, theirs: Settings) -> dict[str, Any]:
        """The last token, one linear layer without bias."""
        return {"pooling": "last", "dropout": 0.0, "transform": None, "bias": False}


class Gpt2(Decoder):
    """GPT-2 (Radford et al. 2019); its linear weights are kept transposed."""

    name = "gpt2"
    prefix = "transformer."
    backbone: ClassVar[Table] = {
        "backbone.embedding.weight": "wte.weight",
        "backbone.position.weight": "wpe.weight",
        "backbone.layers.#.attention.qkv.*": "h.#.attn.c_attn.*",
        "backbone.layers.#.attention.out.*": "h.#.attn.c_proj.*",
        "backbone.layers.#.attention_norm.*": "h.#.ln_1.*",
        "backbone.layers.#.ffn.up.*": "h.#.mlp.c_fc.*",
        "backbone.layers.#.ffn.down.*": "h.#.mlp.c_proj.*",
        "backbone.layers.#.ffn_norm.*": "h.#.ln_2.*",
        "backbone.final_norm.*": "ln_f.*",
    }
    heads: ClassVar[Heads] = {
        "GPT2LMHeadModel": "causal",
        "GPT2ForSequenceClassification": "classification",
        "GPT2ForTokenClassification": "tagging",
        "GPT2Model": None,
    }
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    defaults: ClassVar[Values] = {
        "activation_function": "gelu_new",
        "n_positions": 1024,
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "tie_word_embeddings": True,
    }
    only: ClassVar[Only] = {
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    }

    def read(self, theirs: Settings) -> TransformerConfig:
        """See `Family`."""
        return TransformerConfig(
            dim=theirs["n_embd"],
            depth=theirs["n_layer"],
            heads=theirs["n_head"],
            hidden_dim=theirs["n_inner"],
            max_length=theirs["n_positions"],
            causal=True,
            norm_eps=theirs["layer_norm_epsilon"],
            activation=theirs.choose("activation_function", GELUS),  # type: ignore[arg-type]
            positions="learned",
            tie_embeddings=theirs["tie_word_embeddings"],
            dropout=theirs["resid_pdrop"],
            attention_dropout=theirs["attn_pdrop"],
        )

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """See `Family`."""
        own = config.attention_dropout
        return {
            "n_embd": config.dim,
            "n_layer": config.depth,
            "n_head": config.heads,
            "n_inner": config.ffn_dim,
            "n_positions": config.max_length,
            "activation_function": "gelu" if config.activation == "gelu" else "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout if own is None else own,
        }


class Llama(Decoder):
    """Llama (Touvron et al. 2023; Dubey et al. 2024)."""

    name = "llama"
    prefix = "model."
    tagger = "score"
    backbone: ClassVar[Table] = {
        "backbone.embedding.weight": "embed_tokens.weight",
        "backbone.layers.#.attention.qkv.*": (
            "layers.#.self_attn.q_proj.*",
            "layers.#.self_attn.k_proj.*",
            "layers.#.self_attn.v_proj.*",
        ),
        "backbone.layers.#.attention.out.*": "layers.#.self_attn.o_proj.*",
        "backbone.layers.#.attention.query_norm.*": "layers.#.self_attn.q_norm.*",
        "backbone.layers.#.attention.key_norm.*": "layers.#.self_attn.k_norm.*",
        "backbone.layers.#.attention_norm.*": "layers.#.input_layernorm.*",
        "backbone.layers.#.ffn.up.*": ("layers.#.mlp.gate_proj.*", "layers.#.mlp.up_proj.*"),
        "backbone.layers.#.ffn.down.*": "layers.#.mlp.down_proj.*",
        "backbone.layers.#.ffn_norm.*": "layers.#.post_attention_layernorm.*",
        "backbone.final_norm.*": "norm.*",
    }
    heads: ClassVar[Heads] = {
        "LlamaForCausalLM": "causal",
        "LlamaForSequenceClassification": "classification",
        "LlamaForTokenClassification": "tagging",
        "LlamaModel": None,
    }
    defaults: ClassVar[Values] = {
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
    }
    only: ClassVar[Only] = {"hidden_act": tuple(GATES)}

    def own(self, theirs: Settings) -> dict[str, Any]:
        """What this family has of its own."""
        theirs.require({"mlp_bias": (theirs["attention_bias"],)})
        return {"bias": theirs["attention_bias"]}

    def read(self, theirs: Settings) -> TransformerConfig:
        """See `Family`."""
        return TransformerConfig(
            dim=theirs["hidden_size"],
            depth=theirs["num_hidden_layers"],
            heads=theirs["num_attention_heads"],
            kv_heads=theirs["num_key_value_heads"],
            head_dim=theirs["head_dim"],
            hidden_dim=theirs["intermediate_size"],
            max_length=theirs["max_position_embeddings"],
            causal=True,
            norm="rmsnorm",
            norm_eps=theirs["rms_norm_eps"],
            activation=theirs.choose("hidden_act", GATES),  # type: ignore[arg-type]
            tie_embeddings=theirs["tie_word_embeddings"],
            attention_dropout=theirs["attention_dropout"],
            **theirs.rope(10_000.0),
            **self.own(theirs),
        )

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """See `Family`."""
        own = config.attention_dropout
        return {
            "hidden_size": config.dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_heads,
            "head_dim": config.head_width,
            "intermediate_size": config.ffn_dim,
            "hidden_act": "gelu" if config.activation == "geglu" else "silu",
            "max_position_embeddings": config.max_length,
            "rms_norm_eps": config.norm_eps,
            "attention_bias": config.bias,
            "mlp_bias": config.bias,
            **write_rope(config),
            "tie_word_embeddings": config.tie_embeddings,
            "attention_dropout": config.dropout if own is None else own,
        }


class Qwen2(Llama):
    """Qwen2: biases on queries, keys and values, perhaps windows."""

    name = "qwen2"
    heads: ClassVar[Heads] = {
        "Qwen2ForCausalLM": "causal",
        "Qwen2ForSequenceClassification": "classification",
        "Qwen2ForTokenClassification": "tagging",
        "Qwen2Model": None,
    }
    defaults: ClassVar[Values] = {
        **Llama.defaults,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }

    def own(self, theirs: Settings) -> dict[str, Any]:
        """See `Llama`."""
        return {"bias": False, "qkv_bias": True, **self.windows(theirs)}

    def windows(self, theirs: Settings) -> dict[str, Any]:
        """Their window counts the token itself, ours the distance."""
        depth, first = theirs["num_hidden_layers"], theirs["max_window_layers"]
        if not theirs["use_sliding_window"] or theirs["sliding_window"] is None:
            return {}
        kinds = theirs.get("layer_types")
        kinds = kinds or ["sliding_attention" if i >= first else "full" for i in range(depth)]
        layers = [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
        return {"window": theirs["sliding_window"] - 1, "window_layers": layers} if layers else {}

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """See `Family`."""
        values = super().write(config)
        windowed = [config.is_windowed(layer) for layer in range(config.depth)]
        first = windowed.index(True) if any(windowed) else config.depth
        return {
            **{key: v for key, v in values.items() if key not in ("attention_bias", "mlp_bias")},
            "use_sliding_window": any(windowed),
            "sliding_window": (config.window or 0) + 1 if any(windowed) else None,
            "max_window_layers": first,
            "layer_types": ["sliding_attention" if w else "full_attention" for w in windowed],
        }


class Qwen3(Qwen2):
    """Qwen3: normalised queries and keys, no biases."""

    name = "qwen3"
    heads: ClassVar[Heads] = {
        "Qwen3ForCausalLM": "causal",
        "Qwen3ForSequenceClassification": "classification",
        "Qwen3ForTokenClassification": "tagging",
        "Qwen3Model": None,
    }
    defaults: ClassVar[Values] = {**Qwen2.defaults, "head_dim": 128}
    only: ClassVar[Only] = {**Qwen2.only, "attention_bias": (False,)}

    def own(self, theirs: Settings) -> dict[str, Any]:
        """See `Llama`."""
        return {"bias": False, "qk_norm": True, **self.windows(theirs)}
