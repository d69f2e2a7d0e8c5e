"""Bytes a rank holds at its fullest moment: pure arithmetic over a `Job`.

Kept are weights and optimizer state; gradients grow while the backward pass goes down and
activations shrink. So the fullest moment is the start of the backward pass (activations and the
logits' gradients; gradients too where earlier micro-batches left them) or its end (gradients).
Left out: the allocator's rounding, kernels' workspaces, and what CUDA and NCCL take beside torch
(0.5 to 1 GB a device, `CONTEXT`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ptft_lightning.backbones.attention import PLAIN_MAX_LENGTH
from ptft_lightning.backbones.transformer_config import GATED
from ptft_lightning.backbones.windows import block_size, cuts, pairs
from ptft_lightning.costs.job import Job

CONTEXT = 0.8e9  # of CUDA and NCCL, beside torch's own memory
STATISTICS = 4  # bytes of a norm's mean or deviation, or of a row's softmax


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank, by part."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    recomputed: float
    """Of one layer whose activations are made again, once the logits are gone."""
    logits: float
    accumulates: bool
    """Whether a step has several micro-batches, so that gradients stay beside activations."""

    @property
    def peak(self) -> float:
        """At the fullest moment, see the file."""
        start = self.activations + max(self.logits, self.recomputed)
        start += self.gradients if self.accumulates else 0
        return self.weights + self.optimizer + max(start, self.gradients)

    def parts(self) -> dict[str, float]:
        """Name -> bytes, the peak last."""
        parts = asdict(self)
        del parts["accumulates"]
        return {**parts, "peak": self.peak}


def memory(job: Job) -> Memory:
    """What a rank holds under the job's strategy."""
    sharded = job.strategy == "fsdp2" and job.ranks > 1
    share = job.ranks if sharded else 1
    return Memory(
        weights=weights(job, share),
        gradients=gradients(job, share),
        optimizer=job.sizes.states * job.stored / share,
        activations=activations(job),
        recomputed=recomputed(job) if job.recompute and _trains(job) else 0.0,
        logits=logits(job),
        accumulates=job.micro_batches > 1,
    )


def weights(job: Job, share: int) -> float:
    """A rank's share; under FSDP2 also what is gathered: the root, a layer in use and the next.

    Mixed precision copies each matrix of the layers, and the vocabulary's where it is used, into
    two bytes an element from its forward to its backward pass.
    """
    sizes = job.sizes
    own = sizes.total * job.stored / share
    gathered = (sizes.outside + 2 * sizes.layer) * job.stored if share > 1 else 0
    projected = job.vocab_size * job.config.dim if job.targets else 0
    # A frozen matrix is cast anew at each use, and kept where its input needs a gradient.
    copied = sizes.matrices if sizes.backward else 0
    copies = (copied + projected) * job.dtype.itemsize if _is_mixed(job) else 0
    return own + gathered + copies


def gradients(job: Job, share: int) -> float:
    """As large as what trains; DDP sends them in buckets, which are a second copy; FSDP2 has the
    root's and a layer's whole until they are reduced."""
    trained = job.sizes.trained * job.stored
    if share > 1:
        part = job.sizes.trained / job.sizes.total
        return trained / share + (job.sizes.outside + job.sizes.layer) * job.stored * part
    return trained * (2 if job.strategy == "ddp" and job.ranks > 1 else 1)


def activations(job: Job) -> float:
    """What the backward pass needs of the forward pass, for a micro-batch.

    With `recompute` the input of every layer alone. A frozen backbone keeps nothing. Masks are
    made once for all layers.
    """
    if not _trains(job):
        return 0.0
    config, stream = job.config, job.tokens * job.config.dim * job.stored
    kinds = [config.is_windowed(i) for i in range(config.depth)]
    each = {w: stream if job.recompute else job.tokens * layer_bytes(job, w) for w in {*kinds}}
    kept = sum(each[windowed] for windowed in kinds)
    # Rows of several documents have an additive mask (B, 1, T, T), or one of their blocks.
    masks = sum(job.tokens * keys_seen(job, w) * job.dtype.itemsize for w in {*kinds})
    last = 2 * stream + job.tokens * norm_copy(job) if config.norm_first else stream
    return kept + masks + last


def recomputed(job: Job) -> float:
    """One layer's activations, and the gradients inside its feed-forward part beside them."""
    gates = 2 if job.config.activation in GATED else 1
    kinds = {job.config.is_windowed(i) for i in range(job.config.depth)}
    layer = max(layer_bytes(job, windowed) for windowed in kinds)
    return job.tokens * (layer + gates * job.config.ffn_dim * job.dtype.itemsize)


def layer_bytes(job: Job, windowed: bool) -> float:
    """Bytes a token that one layer keeps for its backward pass.

    With D = dim, A = heads * width, K = key heads * width, F = width inside the feed-forward part,
    s the bytes of the residual stream and c those of what matrices multiply:

        2 D s      the inputs of both norms
        2 D c      the inputs of qkv and of the first feed-forward matrix
        attention  see `attention_bytes`
        2 F c      before and after the activation; 4 F c where it is gated (both halves, the
                   activated gate, the product)
        dropout    a mask of each residual branch (a byte on CUDA)

    and two statistics a norm.
    """
    config, compute = job.config, job.dtype.itemsize
    inner = (4 if config.activation in GATED else 2) * config.ffn_dim
    kept = 2 * config.dim * job.stored + 2 * config.dim * compute + inner * compute
    noise = compute if job.device == "cpu" else 1
    kept += 2 * config.dim * noise if config.dropout else 0
    kept += config.ffn_dim * noise if config.ffn_dropout else 0
    return kept + attention_bytes(job, windowed) + 2 * norm_copy(job) + 4 * STATISTICS


def norm_copy(job: Job) -> int:
    """Bytes a token that RMSNorm keeps beside its input: on CPU it is made of several operators,
    which keep the normalised input, and its float32 form where it comes in two bytes."""
    if job.device != "cpu" or job.config.norm != "rmsnorm":
        return 0
    return job.config.dim * (job.stored + (4 if job.stored == 2 else 0))


def keys_seen(job: Job, windowed: bool) -> float:
    """Keys that a query is multiplied with: all of its row, or those of its blocks."""
    window = job.config.window if windowed else None
    return pairs(job.length, window, job.config.causal) / job.length


def attention_bytes(job: Job, windowed: bool) -> float:
    """Bytes a token of one attention.

    Fused kernels keep queries, keys, values and their output with one number a head: (A + 2 K + A)
    c where the first three are views of one product. Rotary positions make queries and keys anew
    (A + K more, and the output in another order than the next matrix reads, A more); shared key
    heads are repeated for each query. Blocks of a window are copies, of keys and values as many as
    blocks see them. The plain products on CPU keep scaled queries, keys, values and the weights of
    all pairs of tokens.
    """
    config, compute = job.config, job.dtype.itemsize
    queries, keys = config.heads * config.head_width, config.key_heads * config.head_width
    own = config.attention_dropout
    dropout = config.dropout if own is None else own
    on_cpu, seen = job.device == "cpu", keys_seen(job, windowed)
    row, copies, cut = job.length, 1, False
    if windowed and config.window is not None and cuts(job.length, config.window, config.causal):
        row, copies, cut = block_size(config.window), 2 if config.causal else 3, True
    operands = queries * (1 + 2 * copies)
    if on_cpu and dropout and row > (PLAIN_MAX_LENGTH if compute == 2 else 0):
        # torch falls back to float32 products: three operands, weights, their mask and product.
        return operands * 4 + queries * compute + config.heads * seen * 3 * 4
    if on_cpu and compute == 2 and row <= PLAIN_MAX_LENGTH:
        weights = config.heads * seen * compute * (3 if dropout else 1)
        return (operands + 2 * queries) * compute + weights
    kept = queries + 2 * keys + queries
    if config.positions == "rotary":
        repeated = config.key_heads < config.heads
        kept = 4 * queries if repeated else kept + queries + keys
        kept += queries
    if cut:
        kept = operands + 2 * queries
    normed = queries + keys if config.qk_norm and on_cpu else 0  # see `norm_copy`
    return kept * compute + normed * (8 if compute == 2 else 4) + config.heads * STATISTICS


def logits(job: Job) -> float:
    """The loss over the vocabulary at the start of its backward pass: log probabilities, their
    gradient and the logits', each in float32, for as many targets as are made at once."""
    return 3 * 4 * min(job.targets, job.chunk) * job.vocab_size


def _trains(job: Job) -> bool:
    return job.sizes.input_gradients > 0


def _is_mixed(job: Job) -> bool:
    return job.precision.endswith("mixed")


def checkpoint_bytes(job: Job) -> int:
    """Weights and optimizer state of all ranks."""
    return (job.sizes.total + job.sizes.states) * job.stored


def bundle_bytes(job: Job, whole: bool) -> int:
    """The weights; those that were trained where the rest stays in a base."""
    return (job.sizes.total if whole else job.sizes.trained) * job.stored
