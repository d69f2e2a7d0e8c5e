"""Folders as transformers writes them: random weights, tokenizers learned from the corpus."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from torch import nn

ROWS = 620  # of the embedding: more than the tokenizers have ids
SHAPE = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
GPT2 = {"vocab_size": ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # of byte-level BPE
WORDPIECE = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
FEW_KEYS = {"num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
THREE = {"num_labels": 3}
TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
FIVE = {"id2label": dict(enumerate(TAGS)), "label2id": {t: i for i, t in enumerate(TAGS)}}
WIDE = {"embedding_size": 32}  # as wide as the blocks: ELECTRA-base, -large

# name -> (architecture, tokenizer, settings beside SHAPE).
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", "wordpiece", {}),
    "bert untied": ("BertForMaskedLM", "wordpiece", {"tie_word_embeddings": False}),
    "bert with sentence pairs": ("BertForPreTraining", "wordpiece", {}),
    "bert bare": ("BertModel", "wordpiece", {}),
    "bert classifier": ("BertForSequenceClassification", "wordpiece", THREE),
    "bert tagger": ("BertForTokenClassification", "wordpiece", FIVE),
    "bert answers": ("BertForQuestionAnswering", "wordpiece", {}),
    "roberta": ("RobertaForMaskedLM", "roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "roberta untied": (
        "RobertaForMaskedLM",
        "roberta",
        {"type_vocab_size": 1, "tie_word_embeddings": False},
    ),
    "roberta tagger": ("RobertaForTokenClassification", "roberta", FIVE),
    "roberta answers": ("RobertaForQuestionAnswering", "roberta", {}),
    "roberta classifier": ("RobertaForSequenceClassification", "roberta", THREE),
    "modernbert": (
        "ModernBertForMaskedLM",
        "wordpiece",
        {"local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "modernbert untied": (
        "ModernBertForMaskedLM",
        "wordpiece",
        {
            "tie_word_embeddings": False,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "local_attention": 6,
        },
    ),
    "modernbert with biases": (
        "ModernBertForMaskedLM",
        "wordpiece",
        dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True),
    ),
    "modernbert classifier": (
        "ModernBertForSequenceClassification",
        "wordpiece",
        {**THREE, "classifier_pooling": "mean"},
    ),
    "modernbert first-token classifier": (
        "ModernBertForSequenceClassification",
        "wordpiece",
        THREE,
    ),
    "electra": ("ElectraForPreTraining", "wordpiece", WIDE),
    "electra masked": ("ElectraForMaskedLM", "wordpiece", {**WIDE, "layer_norm_eps": 1e-3}),
    "electra masked untied": (
        "ElectraForMaskedLM",
        "wordpiece",
        {**WIDE, "type_vocab_size": 3, "tie_word_embeddings": False},
    ),
    "electra bare": ("ElectraModel", "wordpiece", WIDE),
    "electra tagger": ("ElectraForTokenClassification", "wordpiece", {**WIDE, **FIVE}),
    "electra answers": ("ElectraForQuestionAnswering", "wordpiece", WIDE),
    "electra classifier": ("ElectraForSequenceClassification", "wordpiece", {**WIDE, **THREE}),
    "gpt2": ("GPT2LMHeadModel", "bpe", {}),
    "gpt2 untied": ("GPT2LMHeadModel", "bpe", {"tie_word_embeddings": False}),
    "gpt2 with exact gelu": ("GPT2LMHeadModel", "bpe", {"activation_function": "gelu"}),
    "gpt2 bare": ("GPT2Model", "bpe", {}),
    "gpt2 classifier": ("GPT2ForSequenceClassification", "bpe", THREE),
    "gpt2 tagger": ("GPT2ForTokenClassification", "bpe", FIVE),
    "llama": ("LlamaForCausalLM", "bpe", FEW_KEYS),
    "llama tied": ("LlamaForCausalLM", "bpe", {"tie_word_embeddings": True}),
    "llama with biases": ("LlamaForCausalLM", "bpe", {"attention_bias": True, "mlp_bias": True}),
    "llama 3": ("LlamaForCausalLM", "bpe", {**FEW_KEYS, "rope_parameters": LLAMA3}),
    "llama with wide heads": ("LlamaForCausalLM", "bpe", {"head_dim": 12}),
    "llama classifier": ("LlamaForSequenceClassification", "bpe", {**FEW_KEYS, **THREE}),
    "llama tagger": ("LlamaForTokenClassification", "bpe", {**FEW_KEYS, **FIVE}),
    "qwen2": ("Qwen2ForCausalLM", "bpe", FEW_KEYS),
    "qwen2 with windows": ("Qwen2ForCausalLM", "bpe", {**FEW_KEYS, **WINDOWS}),
    "qwen2 with yarn": (
        "Qwen2ForCausalLM",
        "bpe",
        {**FEW_KEYS, "rope_parameters": YARN, "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3ForCausalLM", "bpe", {**FEW_KEYS, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 with windows": (
        "Qwen3ForCausalLM",
        "bpe",
        {**FEW_KEYS, **WINDOWS, "head_dim": 16, "rope_parameters": YARN},
    ),
    "qwen3 tagger": ("Qwen3ForTokenClassification", "bpe", {**FEW_KEYS, **FIVE}),
    "qwen3 classifier": ("Qwen3ForSequenceClassification", "bpe", {**FEW_KEYS, **THREE}),
}


def randomise(peer: nn.Module) -> None:
    """Weights of a trained model's size: at the initial 0.02 every token looks alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in peer.named_parameters():
            p.normal_(0, 0.3, generator=generator)
            if p.ndim == 1 and name.endswith("weight"):
                p.add_(1.0)
    peer.eval()


def build_peer(name: str) -> Any:
    """A model of transformers with random weights."""
    architecture, tokenizer, more = PEERS[name]
    model = getattr(transformers, architecture)
    ids = {"bpe": IDS, "wordpiece": WORDPIECE, "roberta": {"pad_token_id": 1}}[tokenizer]
    shape = GPT2 if architecture.startswith("GPT2") else SHAPE
    torch.manual_seed(0)
    peer = model(model.config_class(**{**shape, **ids, **more}))
    randomise(peer)
    return peer


@pytest.fixture(scope="session")
def roberta_path(corpus_documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with RoBERTa's special tokens and its frame of pairs."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus_documents, trainer)
    raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    directory = tmp_path_factory.mktemp("roberta")
    raw.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def folder_of(
    bpe_path: Path, wordpiece_path: Path, roberta_path: Path
) -> Callable[[str, Path, Any], Path]:
    """Write a peer as its library does, with tokenizer.json."""
    paths = {"bpe": bpe_path, "wordpiece": wordpiece_path, "roberta": roberta_path}

    def write(name: str, folder: Path, peer: Any, **options: Any) -> Path:
        peer.save_pretrained(folder, **options)
        text = (paths[PEERS[name][1]] / "tokenizer.json").read_text(encoding="utf-8")
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        return folder

    return write


def edit_config(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes a key out."""
    file = folder / "config.json"
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
