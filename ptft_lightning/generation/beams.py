"""Beam search: the likeliest continuations, several kept at each token; knows no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptft_lightning.generation.continuing import Reader
from ptft_lightning.generation.model import LanguageModel


@dataclass(frozen=True)
class Hypothesis:
    """A continuation with its score: log-probability / tokens ** length_penalty (Wu et al. 2016,
    without their constant); the end token counts as a token."""

    score: float
    ids: list[int]
    ended: bool
    """By the end token, which is not in `ids`."""


@dataclass
class Finished:
    """The best hypotheses of one prompt so far."""

    most: int
    length_penalty: float
    room: int
    """Tokens this prompt may go on for."""
    best: list[Hypothesis] = field(default_factory=list)
    done: bool = False

    def score(self, log_probability: float, tokens: int) -> float:
        """See `Hypothesis`."""
        return log_probability / float(tokens**self.length_penalty)

    def offer(self, log_probabilities: list[float], ids: Tensor, ended: bool) -> None:
        """Keep those of (K, n) ids that are among the best; -inf: no hypothesis."""
        tokens = ids.shape[1] + ended
        for row, log_probability in enumerate(log_probabilities):
            score = self.score(log_probability, tokens)
            full = len(self.best) == self.most and score <= self.best[-1].score
            if log_probability > -torch.inf and not full:
                self.best.append(Hypothesis(score, ids[row].tolist(), ended))
                self.best = sorted(self.best, key=lambda h: -h.score)[: self.most]

    def settle(self, log_probabilities: list[float], ids: Tensor) -> None:
        """Done where the (K, n) live beams have no room, or could never be among the best.

        A log-probability only falls; divided by a greater length, what is left of it may rise.
        """
        if ids.shape[1] == self.room:
            self.offer(log_probabilities, ids, ended=False)
            self.done = True
        elif len(self.best) == self.most:
            longest = self.room if self.length_penalty > 0 else ids.shape[1] + 1
            self.done = self.score(max(log_probabilities), longest) <= self.best[-1].score


@torch.inference_mode()
def search_beams(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """Up to `beams` hypotheses of each prompt, the best first.

    At each token the `beams` likeliest beginnings stay. The search of a prompt is over when none of
    them can overtake the finished ones, or at max_new_tokens or the model's max_length.
    """
    rooms = [min(max_new_tokens, model.max_length - len(prompt)) for prompt in prompts]
    finished = [Finished(beams, length_penalty, room) for room in rooms]
    reader = Reader(model, prompts, max(rooms))
    size, end, device = model.tokenizer.size, model.end, model.device
    reader.select(torch.arange(len(prompts), device=device).repeat_interleave(beams))
    first_row = torch.arange(len(prompts), device=device)[:, None] * beams
    # At first all beams are the prompt itself: one of them counts.
    scores = torch.full((len(prompts), beams), -torch.inf, device=device)
    scores[:, 0] = 0.0
    ids = torch.empty(len(prompts), beams, 0, dtype=torch.long, device=device)
    while True:
        steps = reader.logits().log_softmax(-1).view(len(prompts), beams, size)
        if end is not None:
            ending = (scores + steps[:, :, end]).tolist()
            steps[:, :, end] = -torch.inf
            for prompt, (own, row) in enumerate(zip(finished, ending, strict=True)):
                if not own.done:
                    own.offer(row, ids[prompt], ended=True)
        scores, chosen = (scores[:, :, None] + steps).flatten(1).topk(beams)
        parents, tokens = chosen // size, chosen % size
        kept = ids.gather(1, parents[:, :, None].expand(-1, -1, ids.shape[2]))
        ids = torch.cat([kept, tokens[:, :, None]], dim=2)
        for prompt, (own, row) in enumerate(zip(finished, scores.tolist(), strict=True)):
            if not own.done:
                own.settle(row, ids[prompt])
        if all(own.done for own in finished):
            return [own.best for own in finished]
        reader.select((first_row + parents).flatten())
        reader.go_on(tokens.flatten())
