"""Floating point operations of a step: pure arithmetic over a `Job`.

A matrix of n elements multiplies a token with n multiplications and n additions: 2 n FLOPs
forward, 2 n for the gradient of its input, 2 n for its own. Where all of a net trains, that is the
rule of 6 FLOPs a parameter and token (Kaplan et al. 2020). Attention adds, per layer and token, the
products of queries with keys and of weights with values: 2 * 2 T A for T tokens a row and A = heads
* head width, twice that backward. The whole square of T x T counts, as in Chowdhery et al. 2022:
what causal kernels leave out shows as a higher share of the peak. Of windowed layers whose rows are
cut into blocks, what the blocks compute counts. Norms, activations, softmax and the optimizer are
left out (below a hundredth at usual widths).
"""

from __future__ import annotations

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.backbones.windows import pairs
from ptft_lightning.costs.job import Job


def layers_forward(job: Job) -> int:
    """Of the layers for a micro-batch: tokens * 2 matrices, and attention."""
    return job.tokens * 2 * job.sizes.matrices + attention_forward(job)


def attention_forward(job: Job) -> int:
    """Of the products inside the attention of all layers."""
    return job.rows * attention_of_row(job.config, job.length)


def attention_of_row(config: TransformerConfig, length: int) -> int:
    """Of the products inside the attention of all layers for a row of `length` tokens: 4 A for
    each pair of a query and a key."""
    kinds = [config.window if config.is_windowed(i) else None for i in range(config.depth)]
    found = sum(pairs(length, window, config.causal) for window in kinds)
    return 4 * found * config.heads * config.head_width


def layers_backward(job: Job) -> int:
    """Gradients of inputs where something before them trains, and of what trains itself; those of
    attention likewise."""
    matrices = 2 * job.tokens * job.sizes.backward
    return matrices + 2 * attention_forward(job) * job.sizes.attentions // job.config.depth


def head_forward(job: Job) -> int:
    """Of a pretraining head per target: 2 D V, and 2 n of its other matrices' n elements; and what
    it computes of every place. The heads of phase two are small and left out."""
    per_target = 2 * (job.config.dim * job.vocab_size + job.head_matrices)
    return job.targets * per_target + job.tokens * job.beside


def micro_batch(job: Job) -> int:
    """Forward and backward of one micro-batch, layers that are computed again counted once. Logits
    that are made in chunks are made again in the backward pass."""
    again = 2 * job.targets * job.config.dim * job.vocab_size if job.chunked else 0
    return layers_forward(job) + layers_backward(job) + 3 * head_forward(job) + again


def step(job: Job) -> int:
    """Of an optimizer step over all ranks."""
    return micro_batch(job) * job.micro_batches * job.ranks


def seconds(job: Job, steps: int, peak: float, mfu: float) -> float:
    """Of so many steps at a share `mfu` of each device's `peak` FLOP/s; recomputation runs the
    layers forward once more."""
    again = layers_forward(job) * job.micro_batches * job.ranks if job.recompute else 0
    return (step(job) + again) * steps / (job.ranks * peak * mfu)
