"""New tokens/s (W6): a GPT-2-like model of 13.9 M parameters, ours against Hugging Face's.

Prompts of 32 tokens, 200 new ones, the likeliest at each place, float32, random weights, the same
in both. The two take turns; prints one JSON line per batch size with medians and their ratio.

    python benchmarks/generation.py [--repeats 5] [--new 200] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.generation.continuing import continue_prompts
from ptft_lightning.generation.growth import Limits
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.generation.sampling import Sampling
from ptft_lightning.objectives.causal import CausalLM

VOCABULARY, LENGTH, WIDTH, DEPTH, HEADS, PROMPT = 8192, 256, 384, 6, 6, 32
LINEAR = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}
NORMS = {"attention_norm": "ln_1", "ffn_norm": "ln_2"}


class NoText(Tokenizer):
    """As many ids as the model has, none of which ends a text."""

    def __init__(self) -> None:
        self.size, self.end = VOCABULARY, None

    def decode(self, ids: list[int]) -> str:
        return ""


def build_peer() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=HEADS,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def build_ours(peer: Any) -> LanguageModel:
    """With the peer's weights, whose linear layers are transposed."""
    config = TransformerConfig(
        dim=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        max_length=LENGTH,
        causal=True,
        positions="learned",
        activation="gelu_tanh",
    )
    backbone = Transformer(config, VOCABULARY)
    theirs = {k.removeprefix("transformer."): v for k, v in peer.state_dict().items()}
    state = {"embedding.weight": theirs["wte.weight"], "position.weight": theirs["wpe.weight"]}
    for kind in ("weight", "bias"):
        state[f"final_norm.{kind}"] = theirs[f"ln_f.{kind}"]
        for layer in range(DEPTH):
            for mine, name in LINEAR.items():
                value = theirs[f"h.{layer}.{name}.{kind}"]
                state[f"layers.{layer}.{mine}.{kind}"] = value.t() if kind == "weight" else value
            for mine, name in NORMS.items():
                state[f"layers.{layer}.{mine}.{kind}"] = theirs[f"h.{layer}.{name}.{kind}"]
    backbone.load_state_dict(state)
    head = CausalLM().build_head(backbone, tied=True)
    return LanguageModel(backbone.eval(), head.eval(), NoText())


def timed(work: Callable[[], Any], device: str) -> float:
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    peer = build_peer().to(args.device)
    ours = build_ours(peer)
    ours.backbone.to(args.device)
    for size in args.batches:
        prompts = torch.randint(6, VOCABULARY, (size, PROMPT), device=args.device)
        limits, rows = Limits(args.new), prompts.tolist()
        options = {"max_new_tokens": args.new, "min_new_tokens": args.new, "do_sample": False}

        def theirs() -> Any:
            mask = torch.ones_like(prompts)  # noqa: B023
            return peer.generate(prompts, attention_mask=mask, **options)  # noqa: B023

        def mine() -> Any:
            return continue_prompts(ours, rows, Sampling(), limits)  # noqa: B023

        found = [one.ids for one in mine()]
        same = sum(a == b for a, b in zip(theirs()[:, PROMPT:].tolist(), found, strict=True))
        seconds: dict[str, list[float]] = {"ours": [], "huggingface": []}
        for _ in range(args.repeats):
            seconds["huggingface"].append(timed(theirs, args.device))
            seconds["ours"].append(timed(mine, args.device))
        rates = {k: size * args.new / statistics.median(v) for k, v in seconds.items()}
        ratios = [h / o for h, o in zip(seconds["huggingface"], seconds["ours"], strict=True)]
        line = {
            "batch": size,
            **{f"{k}_tokens_per_s": round(v, 1) for k, v in rates.items()},
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(r, 2) for r in sorted(ratios)],
            "same_texts": f"{same} of {size}",
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
