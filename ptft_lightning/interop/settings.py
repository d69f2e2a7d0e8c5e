"""A Hugging Face config.json as it is read: missing keys, values we lack; knows no family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ptft_lightning.backbones.transformer_config import RopeScaling, TransformerConfig
from ptft_lightning.errors import UserError

# What every family is read without, as the values that mean just that.
PLAIN: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "partial_rotary_factor": (1.0, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "num_experts": (0, None),
    "num_local_experts": (0, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": (None,),  # code of its own
}
TYPE = ("rope_type", "type")
# Settings of each way to stretch rotary angles: theirs -> ours.
ROPE_KEYS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    },
}


class Settings:
    """The content of a config.json over the defaults of its model type.

    Args:
        place: how the file is named in messages.
        content: what it holds.
        defaults: what the model type means by a key that is missing.
    """

    def __init__(self, place: str, content: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.place, self.content = place, {**defaults, **content}

    def __getitem__(self, key: str) -> Any:
        if key not in self.content:
            raise UserError(f"'{self.place}' has no '{key}': is it whole?")
        return self.content[key]

    def get(self, key: str) -> Any:
        """A value, None where there is none."""
        return self.content.get(key)

    def require(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse the first setting whose value is not among those we compute."""
        for key, values in allowed.items():
            if key in self.content and self.content[key] not in values:
                choices = " or ".join(dict.fromkeys(repr(v) for v in values if v is not None))
                raise UserError(
                    f"'{self.place}' has {key} {self.content[key]!r}: this program's Transformer "
                    f"has only {choices or 'models without it'}"
                )

    def choose(self, key: str, choices: Mapping[str, str]) -> str:
        """Our name for one of their values."""
        self.require({key: tuple(choices)})
        return choices[self[key]]

    def rope(self, theta: float, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """`rope_theta` and `rope_scaling` of a Transformer.

        Older files have the base at the top and the rest in `rope_scaling`, newer ones all in
        `rope_parameters`; those given go before both.
        """
        found = parameters or self.get("rope_parameters") or self.get("rope_scaling") or {}
        kind = next((found[key] for key in TYPE if found.get(key)), "default")
        if kind != "default" and kind not in ROPE_KEYS:
            raise UserError(
                f"'{self.place}' stretches rotary angles by '{kind}': this program knows "
                f"{', '.join(ROPE_KEYS)}"
            )
        keys = ROPE_KEYS.get(kind, {})
        plain = {"partial_rotary_factor": (1.0, None), "truncate": (True, None)}
        rest = {k: v for k, v in found.items() if k not in (*keys, *TYPE, "rope_theta")}
        Settings(self.place, rest, {}).require({key: plain.get(key, (None,)) for key in rest})
        base = found.get("rope_theta") or self.get("rope_theta") or theta
        given = {ours: found[k] for k, ours in keys.items() if found.get(k) is not None}
        if "original_length" in keys.values():
            given.setdefault("original_length", self["max_position_embeddings"])
        scaling = RopeScaling(kind, **given) if given else None  # type: ignore[arg-type]
        return {"rope_theta": float(base), "rope_scaling": scaling}


def write_rope(config: TransformerConfig) -> dict[str, Any]:
    """The form of `Settings.rope` that all releases of transformers read."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_theta": config.rope_theta}
    values = {theirs: getattr(scaling, ours) for theirs, ours in ROPE_KEYS[scaling.kind].items()}
    given = {key: value for key, value in values.items() if value is not None}
    return {"rope_theta": config.rope_theta, "rope_scaling": {"rope_type": scaling.kind, **given}}


def effective(config: TransformerConfig) -> dict[str, Any]:
    """What a config computes: defaults filled in, settings without effect left out.

    Dropout is left out, too: it has no part in what a trained model computes.
    """
    values = {k: v for k, v in asdict(config).items() if "dropout" not in k}
    values["kv_heads"], values["head_dim"] = config.key_heads, config.head_width
    values["hidden_dim"] = config.ffn_dim
    values["qkv_bias"] = config.bias if config.qkv_bias is None else config.qkv_bias
    values["first_norm"] = config.first_norm or not config.norm_first
    windowed = [layer for layer in range(config.depth) if config.is_windowed(layer)]
    values["window_layers"] = windowed or None
    if not windowed:
        values["window"] = values["window_rope_theta"] = None
    elif config.positions == "rotary":
        values["window_rope_theta"] = config.window_rope_theta or config.rope_theta
    if config.positions == "learned":
        del values["rope_theta"]
    if config.rope_scaling is not None:
        used = {"kind", *ROPE_KEYS[config.rope_scaling.kind].values()}
        values["rope_scaling"] = {k: v for k, v in values["rope_scaling"].items() if k in used}
    return values
