"""A prefix-LM reads a prompt in both directions, trained or writing, and goes on causally."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from generation.conftest import SHAPES, Build

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.batch import Batch, build_batch
from ptft_lightning.data.conversations import USER, Turn, conversation
from ptft_lightning.data.example_rows import pack_examples
from ptft_lightning.data.examples import Encoded
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.generation.beams import search_beams
from ptft_lightning.generation.continuing import Reader, continue_prompts, encode_prompt
from ptft_lightning.generation.growth import Limits
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.generation.sampling import Sampling
from ptft_lightning.modules.nets import TaskNet, build_backbone
from ptft_lightning.tasks.decoding import Decoding
from ptft_lightning.tasks.generation import Generation
from ptft_lightning.tuning.prompt import PromptTuning

TEXTS = ["The river", "的一是了我不人在", "a", "Evening music and stone bread and letter", "x y"]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def whole(model: LanguageModel, prompt: list[int], more: list[int]) -> torch.Tensor:
    """Logits after all tokens, read anew; segment 1 is the prompt."""
    tokens = torch.tensor([prompt + more])
    segments = torch.tensor([[1] * len(prompt) + [0] * len(more)])
    with torch.no_grad():
        hidden = model.backbone(tokens, segments=segments)
    return model.logits(hidden[0, -1])[: model.tokenizer.size]


@every_shape
def test_cached_logits_equal_uncached_ones(build: Build, bpe: Tokenizer, shape: str):
    model = build(bpe, prefix_lm=True, **SHAPES[shape])
    prompts = [encode_prompt(model, text) for text in TEXTS]
    more = torch.randint(5, bpe.size, (6, len(prompts)))
    reader = Reader(model, prompts, 6)
    for step in range(6):
        for row, prompt in enumerate(prompts):
            wanted = whole(model, prompt, more[:step, row].tolist())
            torch.testing.assert_close(reader.logits()[row], wanted, atol=1e-4, rtol=1e-4)
        reader.go_on(more[step])


@every_shape
def test_continuations_and_beams_are_the_uncached_ones(build: Build, bpe: Tokenizer, shape: str):
    model = build(bpe, prefix_lm=True, **SHAPES[shape])
    prompts = [encode_prompt(model, text) for text in TEXTS]
    found = continue_prompts(model, prompts, Sampling(), Limits(8))
    beams = search_beams(model, prompts, 1, 8)
    for prompt, one, beam in zip(prompts, found, beams, strict=True):
        ids: list[int] = []
        while len(ids) < min(8, model.max_length - len(prompt)):
            ids.append(int(whole(model, prompt, ids).argmax()))
            if ids[-1] == bpe.end:
                ids.pop()
                break
        assert one.ids == ids
        assert beam[0].ids == ids


def test_a_prompt_is_read_in_both_directions(build: Build, bpe: Tokenizer):
    """What it would be without, to know that the tests above can fail."""
    mine, plain = (build(bpe, prefix_lm=lm) for lm in (True, False))
    prompt = encode_prompt(mine, TEXTS[3])
    both, one = (Reader(model, [prompt], 1).logits() for model in (mine, plain))
    assert (both - one).abs().max() > 1e-3


def encoded(task: Generation, tokenizer: Tokenizer, count: int = 7) -> list[Encoded]:
    examples = []
    for n in range(count):
        source, target = TEXTS[n % 5] * (1 + n % 2), TEXTS[(n + 1) % 5]
        turns = [Turn(USER, source)]
        examples.append(conversation(turns, [target], f"line {n}"))
    return task.encode(examples, [], tokenizer, 48)


def batch_of(
    task: Generation, chosen: list[Encoded], tokenizer: Tokenizer, length: int, reserved: int = 0
) -> Batch:
    tokens, documents, _, rows, starts = pack_examples(chosen, length, tokenizer.pad, reserved)
    targets = task.targets(chosen, rows, starts)
    numbers = np.arange(len(chosen))
    return build_batch(tokens, documents, numbers, targets, len(chosen))


def net_of(tokenizer: Tokenizer, task: Generation, tuning: Any = None, **shape: Any) -> TaskNet:
    values = {"dim": 32, "depth": 2, "heads": 4, "max_length": 80, "causal": True, **shape}
    config = TransformerConfig(**values)
    torch.manual_seed(0)
    backbone = build_backbone("transformer", vars(config), tokenizer.size)
    reader = None if tuning is None else tuning.build_reader(backbone)
    net = TaskNet(backbone, task.build_head(backbone, []), reader)
    for p in net.parameters():
        torch.nn.init.normal_(p, 0.0, 0.2)
    return net.eval()


TASK = Generation(decoding=Decoding(max_new_tokens=8))


@pytest.mark.parametrize("length", [64, 48])
def test_the_loss_of_a_task_reads_prompts_as_they_are_read_in_writing(bpe: Tokenizer, length: int):
    net, chosen = net_of(bpe, TASK, prefix_lm=True), encoded(TASK, bpe)
    empty = Encoded([], [])
    term = net(batch_of(TASK, [*chosen, empty], bpe, length)).terms["generation"]
    total = 0.0
    for one in chosen:
        prompt = int(one.targets["prompt"])
        model = LanguageModel(net.backbone, net.head, bpe)
        assert one.targets["counted"].tolist() == [*range(prompt, len(one.tokens))]
        reader = Reader(model, [one.tokens[:prompt]], len(one.tokens))
        for token in one.tokens[prompt:]:
            with torch.no_grad():
                total -= reader.logits()[0].log_softmax(-1)[token].item()
                reader.go_on(torch.tensor([token]))
    assert term.total.item() == pytest.approx(total, rel=1e-4)


def test_soft_prompts_belong_to_the_prefix(bpe: Tokenizer):
    """They are seen alike wherever an example is packed."""
    tuning = PromptTuning(3)
    net, chosen = net_of(bpe, TASK, tuning, prefix_lm=True), encoded(TASK, bpe)
    packed = net(batch_of(TASK, chosen, bpe, 72, reserved=3)).terms["generation"]
    totals = [
        net(batch_of(TASK, [one], bpe, 51, reserved=3)).terms["generation"].total for one in chosen
    ]
    torch.testing.assert_close(packed.total, torch.stack(totals).sum(), rtol=1e-4, atol=1e-4)
    batch = net.head.reads(batch_of(TASK, chosen, bpe, 72, reserved=3), net.backbone)
    assert batch.segments is not None
    fronts = int(batch.segments.sum())
    assert fronts == sum(int(one.targets["prompt"]) + 3 for one in chosen)


def test_a_plain_causal_model_is_left_alone(bpe: Tokenizer):
    net, chosen = net_of(bpe, TASK, token_types=2), encoded(TASK, bpe)
    batch = batch_of(TASK, chosen, bpe, 64)
    assert net.head.reads(batch, net.backbone) is batch


def test_conversations_with_several_answers_need_the_last_one_alone(bpe: Tokenizer):
    with pytest.raises(UserError, match=r"set model\.task\.loss_on last"):
        net_of(bpe, Generation(format="messages"), prefix_lm=True)
    net_of(bpe, Generation(format="messages", loss_on="last"), prefix_lm=True)
    net_of(bpe, Generation(format="messages"))
