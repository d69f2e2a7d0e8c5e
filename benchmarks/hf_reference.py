"""The same two phases with Hugging Face's Trainer: equal size, text, tokens, epochs; one JSON line.

Masked LM on blocks of a text corpus, then sequence classification from that model and from scratch.
Beside ours it tells whether our scores are what such a model reaches. Needs `transformers` and
`accelerate`; everything else (tokenizer, files, columns) is ours.

    python benchmarks/hf_reference.py --tokenizer tokenizer --corpus corpus.jsonl.gz \
        --train train.tsv.gz --test test.tsv --text sentence --steps 1000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.data.documents import Reading, text_size
from ptft_lightning.data.examples import Columns, Example, read_examples
from ptft_lightning.data.plan import held_out
from ptft_lightning.data.sampling import sample_documents
from ptft_lightning.data.tokenizer import Tokenizer


def load_tokenizer(path: str) -> hf.PreTrainedTokenizerFast:
    return hf.PreTrainedTokenizerFast(
        tokenizer_file=str(Path(path) / "tokenizer.json"),
        pad_token="[PAD]",
        mask_token="[MASK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def config(options: argparse.Namespace, tokenizer: Tokenizer, labels: int) -> hf.BertConfig:
    return hf.BertConfig(
        vocab_size=tokenizer.size,
        hidden_size=options.dim,
        num_hidden_layers=options.depth,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.dim,
        max_position_embeddings=options.length,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        pad_token_id=tokenizer.pad,
        num_labels=labels,
    )


def arguments(folder: str, options: argparse.Namespace, **more: Any) -> hf.TrainingArguments:
    return hf.TrainingArguments(
        output_dir=folder,
        save_strategy="no",
        report_to="none",
        bf16=options.bf16,
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=200,
        remove_unused_columns=False,
        **more,
    )


def pretrain(options: argparse.Namespace, tokenizer: Tokenizer, folder: str) -> Path:
    """Masked LM on the blocks our own run would see in its first steps, in stored order."""
    wanted = options.steps * options.batch * options.length
    stream: list[int] = []
    sized = [(options.corpus, text_size(options.corpus))]
    for document in sample_documents(sized, Reading(), sys.maxsize, BadDocuments()):
        if held_out(document, 0.01):
            continue
        stream += tokenizer.frame(tokenizer.encode([document])[0])
        if len(stream) >= wanted:
            break
    rows = np.array(stream[: len(stream) // options.length * options.length])
    data = [{"input_ids": row.tolist()} for row in rows.reshape(-1, options.length)]
    collator = hf.DataCollatorForLanguageModeling(
        load_tokenizer(options.tokenizer), mlm_probability=options.rate
    )
    model = hf.BertForMaskedLM(config(options, tokenizer, 2))
    settings = arguments(
        folder,
        options,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        learning_rate=options.lr,
        weight_decay=0.1,
        adam_beta2=0.95,
        warmup_steps=round(0.02 * options.steps),
        lr_scheduler_type="cosine",
    )
    hf.Trainer(model=model, args=settings, train_dataset=data, data_collator=collator).train()
    model.save_pretrained(folder + "/model")
    return Path(folder) / "model"


def encode(examples: list[Example], labels: list[str], tokenizer: Tokenizer, length: int) -> list:
    ids = tokenizer.encode([e.text for e in examples])
    return [
        {"input_ids": tokenizer.frame(i[: length - 2]), "labels": labels.index(str(e.label))}
        for i, e in zip(ids, examples, strict=True)
    ]


def tune(
    start: Path | None, seed: int, epochs: int, options: argparse.Namespace, tokenizer: Tokenizer
) -> float:
    """Fine-tune and return the accuracy on the test file after the last epoch."""
    columns = Columns(options.text, None, options.label, options.names)
    train, test = (read_examples(f, columns, True) for f in (options.train, options.test))
    labels = sorted({str(e.label) for e in train})
    hf.set_seed(seed)
    shape = config(options, tokenizer, len(labels))
    if start is None:
        model = hf.BertForSequenceClassification(shape)
    else:
        model = hf.BertForSequenceClassification.from_pretrained(start, config=shape)
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(
            folder,
            options,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=options.tune_lr,
            weight_decay=0.01,
            warmup_steps=round(0.1 * epochs * len(train) / 32),
            lr_scheduler_type="linear",
            seed=seed,
        )
        trainer = hf.Trainer(
            model=model,
            args=settings,
            train_dataset=encode(train, labels, tokenizer, options.length),
            data_collator=hf.DataCollatorWithPadding(load_tokenizer(options.tokenizer)),
        )
        trainer.train()
        output = trainer.predict(encode(test, labels, tokenizer, options.length))
    return float((output.predictions.argmax(-1) == output.label_ids).mean())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("tokenizer", "corpus", "train", "test"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--names", nargs="*")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--tune-lr", type=float, default=5e-4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(options.tokenizer)
    real = os.dup(1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        start = pretrain(options, tokenizer, folder)
        minutes = (time.process_time() - began) / 60
        tuned = [tune(start, s, options.epochs, options, tokenizer) for s in range(options.seeds)]
    scratch = [tune(None, s, 3 * options.epochs, options, tokenizer) for s in range(options.seeds)]
    line = {
        "pretrain_cpu_minutes": round(minutes, 1),
        "pretrained": [round(x, 4) for x in tuned],
        "pretrained_mean": round(statistics.mean(tuned), 4),
        "scratch_3x": [round(x, 4) for x in scratch],
        "scratch_3x_mean": round(statistics.mean(scratch), 4),
    }
    os.write(real, (json.dumps(line) + "\n").encode())


if __name__ == "__main__":
    main()
