"""What only a CUDA device can show; run by `make test-gpu`."""

import json
from pathlib import Path

import pytest
import torch

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.cli import main
from ptft_lightning.data.batch import positions_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("causal", [False, True])
def test_packed_rows_on_the_gpu_equal_the_cpu(causal):
    shape = TransformerConfig(dim=64, depth=2, heads=2, max_length=64, causal=causal)
    torch.manual_seed(0)
    backbone = Transformer(shape, 100).eval()
    tokens = torch.randint(5, 100, (3, 64))
    documents = torch.tensor([[1] * 20 + [2] * 30 + [0] * 14, [1] * 64, [1] * 5 + [2] * 59])
    positions = torch.from_numpy(positions_of(documents.numpy()))
    here = backbone(tokens, documents, positions)
    there = backbone.cuda()(tokens.cuda(), documents.cuda(), positions.cuda()).cpu()
    real = documents > 0
    torch.testing.assert_close(there[real], here[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_fit_on_the_gpu(tmp_path, store, bpe_path, precision):
    main(
        [
            *("fit", "--model", "PretrainModule", "--model.objective", "CausalLM"),
            *("--model.backbone.dim", "32", "--model.backbone.heads", "2"),
            *("--model.backbone.causal", "true"),
            *("--data", "CorpusDataModule", "--data.store", str(store), "--data.length", "32"),
            *("--data.tokenizer", str(bpe_path), "--run_dir", str(tmp_path / "run")),
            *("--trainer.accelerator", "gpu", "--trainer.devices", "1"),
            *("--trainer.max_steps", "3", "--trainer.precision", precision),
            *("--trainer.logger", "false", "--trainer.log_every_n_steps", "1"),
        ]
    )
    lineage = json.loads((tmp_path / "run" / "bundle" / "lineage.json").read_text())
    assert lineage["steps"] == 3


CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_memory_and_flops_on_the_gpu_are_those_planned(tmp_path, corpus_file, bpe_path, precision):
    """Memory within a tenth, where the model is large enough for the allocator's rounding not to
    count; FLOPs to the last."""
    run_dir = tmp_path / "run"
    main(
        [
            *("fit", "--config", str(CONFIGS / "pretrain" / "gpt.yaml")),
            *("--config", str(CONFIGS / "trainer" / "gpu.yaml"), "--run_dir", str(run_dir)),
            *("--data.files", json.dumps([str(corpus_file)]), "--data.tokenizer", str(bpe_path)),
            *("--data.store", str(tmp_path / "store"), "--data.workers", "0"),
            *("--model.backbone.dim", "768", "--model.backbone.heads", "12"),
            *("--model.vocab_size", "32768", "--trainer.precision", precision),
            *("--trainer.max_steps", "4", "--trainer.logger", "false"),
            *("--trainer.log_every_n_steps", "1", "--report", "false"),
        ]
    )
    costs = json.loads((run_dir / "costs.json").read_text())
    memory, flops = costs["peak_memory"], costs["flops_per_micro_batch"]
    assert flops["measured"] == flops["predicted"]
    assert memory["measured"] == pytest.approx(memory["predicted"], rel=0.1)


def test_answers_are_written_on_the_gpu(tmp_path, bpe_path):
    """In the validations of a fit, and by `test` and `predict`."""
    rows = [{"text": f"say {n}", "label": f"the river {n}"} for n in range(12)]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ["--run_dir", str(tmp_path / "run")]
    gpu = ["--trainer.accelerator", "gpu", "--trainer.devices", "1"]
    main(
        [
            *("fit", "--model", "FinetuneModule", "--model.task", "Generation"),
            *("--model.backbone", "{dim: 32, depth: 2, heads: 2, max_length: 64, causal: true}"),
            *("--model.task.decoding.max_new_tokens", "4", "--model.task.validation_examples", "3"),
            *("--data", "TaskDataModule", "--data.tokenizer", str(bpe_path), *run, *gpu),
            *("--data.train", str(file), "--data.validation", str(file), "--data.test", str(file)),
            *("--data.max_length", "64", "--trainer.max_steps", "2", "--report", "false"),
        ]
    )
    main(["test", *run, *gpu])
    main(["predict", *run, *gpu, "--data.predict", str(file)])
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(rows)
