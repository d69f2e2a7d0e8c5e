"""Phase one's data: a token store as batches of rows; knows no model."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ptft_lightning.data.bad_documents import MAX_BAD_SHARE, OnBadDocument
from ptft_lightning.data.cache_config import CacheConfig
from ptft_lightning.data.decoding import Encoding
from ptft_lightning.data.layouts import batch_rows, lay_out, tell_left_out
from ptft_lightning.data.manifest import Manifest, has_manifest, read_manifest
from ptft_lightning.data.mixture_config import MixtureConfig, choose
from ptft_lightning.data.module import BatchLoader, PhaseData
from ptft_lightning.data.packing import Layout
from ptft_lightning.data.plan import check_share, read_plan
from ptft_lightning.data.row_batches import RowDataset, RowMaker
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.sample_order import Numbers
from ptft_lightning.data.sources import expand_sources
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

if TYPE_CHECKING:
    from ptft_lightning.data.growing import GrowingStore
    from ptft_lightning.data.prefetch import Prefetch


class CorpusDataModule(PhaseData):
    """Rows of text for phase one, from a token store; prepares small corpora by itself.

    Args:
        files: Paths, globs, folders or URLs of text (.txt, .jsonl, .csv, .tsv, also .gz or .zst;
            .parquet), or hub:owner/name?config=NAME&split=NAME; not needed for a finished store.
        store: Directory of the token store, made from `files` when it is not there yet; or the URL
            of one that was copied there, such as s3://bucket/store. Several: see mixture.
        tokenizer: A tokenizer.json or its directory; with init_from the bundle's own is used.
        column: The text column, of all files but .txt.
        encoding: Of text files; a byte order mark is dropped.
        on_bad_document: Count documents that cannot be read and leave them out, or stop at one.
        max_bad_share: Refuse a corpus of which a larger share cannot be read.
        layout: `blocks` cuts the text every `length` tokens; `documents` keeps documents whole
            and packs them; `sentence_pairs` packs pairs of neighbouring sentences, for
            NextSentence and SentenceOrder (a new store notes where sentences start).
        length: Tokens in a row.
        global_batch_size: Rows per optimizer step, over all ranks.
        micro_batch_size: Rows computed at once on one rank.
        validation_share: Share of documents held out, chosen by hash of their text.
        seed: Decides the order of the rows and the masks.
        window: Shards among which rows are mixed.
        word_starts: Note in a new store where words start, for MaskedLM's whole_words.
        workers: Processes that read rows beside the training process, per rank.
        audit: A file that gets, per optimizer step, the samples used and a hash of each.
        replay: Other token stores and which share of all rows comes from each, such as general
            text in domain adaptation; an epoch is one pass over `store`.
        mixture: Several named token stores instead of `store`, by weight or by size.
        validation_stores: Names and token stores of other text, whose held-out loss is told before
            and after training; default: those of `replay` or `mixture` beside the first.
        cache: Where shards of stores behind URLs are kept, and how many.
        growing: Begin while `prepare` is still at work on the store, as soon as the first `window`
            shards are there; with `files` the preparation is started, too, beside the training.
            Held-out text is that of the first window.
    """

    def __init__(
        self,
        store: str | None = None,
        files: list[str] | None = None,
        tokenizer: str | None = None,
        column: str = "text",
        encoding: Encoding = "utf-8",
        on_bad_document: OnBadDocument = "skip",
        max_bad_share: float = MAX_BAD_SHARE,
        layout: Layout = "blocks",
        length: int = 128,
        global_batch_size: int = 32,
        micro_batch_size: int = 32,
        validation_share: float = 0.01,
        seed: int = 0,
        window: int = 16,
        word_starts: bool = False,
        workers: int = 0,
        audit: str | None = None,
        replay: dict[str, float] | None = None,
        mixture: MixtureConfig | None = None,
        validation_stores: dict[str, str] | None = None,
        cache: CacheConfig = CacheConfig(),
        growing: bool = False,
    ) -> None:
        super().__init__(seed, global_batch_size, micro_batch_size, workers, audit)
        check_share(validation_share)
        self.mixture = choose(store, replay, mixture)
        self.stores = {"": str(store)} if self.mixture is None else self.mixture.stores
        self.store = next(iter(self.stores.values()))
        others = {name: at for name, at in self.stores.items() if at != self.store}
        self.default_validation = validation_stores is None
        self.validation_stores = others if validation_stores is None else validation_stores
        self.files, self.tokenizer_path = files or [], tokenizer
        self.column, self.layout, self.length = column, layout, length
        self.encoding, self.on_bad_document = encoding, on_bad_document
        self.max_bad_share = max_bad_share
        self.validation_share, self.window = validation_share, window
        self.word_starts, self.cache, self.growing = word_starts, cache, growing
        self.prefetch: Prefetch | None = None
        from ptft_lightning.data.store_checks import check_settings

        check_settings(self)

    def prepare_data(self) -> None:
        """Check everything that crosses to the model, then make the store if need be."""
        self._load_tokenizer()
        module: Any = self._trainer().lightning_module
        module.preflight(self)
        self.files = expand_sources(self.files)
        from ptft_lightning.data.own_store import provide  # a leaf

        provide(self)

    @property
    def has_word_starts(self) -> bool:
        """Whether the store says where words start, or will."""
        if has_manifest(self.store):
            return read_manifest(self.store).segmenter is not None
        plan = read_plan(self.store) if self.growing else None
        return self.word_starts if plan is None else plan.get("segmenter") is not None

    @cached_property
    def growing_store(self) -> GrowingStore:
        """What there is so far of a store that grows."""
        from ptft_lightning.data.growing import GrowingStore  # a leaf

        return GrowingStore(self.store, self.tokenizer, self.window, self)

    def manifest_of(self, store: str) -> Manifest:
        """What a store holds, one that grows in its first window."""
        grows = self.growing and store == self.store
        return self.growing_store.first if grows else read_manifest(store)

    def _load_tokenizer(self) -> None:
        module: Any = self._trainer().lightning_module
        bundle = getattr(module, "bundle", None)
        if self.tokenizer_path is not None:
            self.tokenizer = Tokenizer.load(self.tokenizer_path)
        elif bundle is not None:
            self.tokenizer = bundle.tokenizer
        else:
            raise UserError("data.tokenizer is missing: name a tokenizer.json")

    def setup(self, stage: str) -> None:
        """Open the store and place this run's steps in it."""
        self._load_tokenizer()
        module: Any = self._trainer().lightning_module
        self.objective: RowMaker = module.objective
        from ptft_lightning.data.store_checks import check_stores

        check_stores(self)
        rows = {name: self.rows_of(at, "train") for name, at in self.stores.items()}
        self.train_rows = next(iter(rows.values()))
        self.validation_rows = self.rows_of(self.store, "validation")
        tell_left_out(self.layout, self.train_rows, self.validation_rows)
        if self.mixture is not None and stage == "fit":
            from ptft_lightning.data.mixture import begin  # a leaf

            begin(self, rows)
        if stage == "fit":
            if not self.train_rows:
                raise UserError(f"the token store '{self.store}' holds no training documents")
            self.place_in_trainer()
            for store in self.train_rows.stores:
                if store.cache is not None:
                    store.cache.check_room(self.window)

    def state_dict(self) -> dict[str, Any]:
        """See `PhaseData`; with what decided the shares of a mixture."""
        request = {} if self.mixture is None else self.mixture.request(self.rows_from(0))
        return super().state_dict() | {"mixture": request}

    def rows_from(self, step: int) -> int:
        """Rows that a run reads from a step on; negative where steps are not counted yet."""
        steps = self._trainer().max_steps
        return -1 if steps < 0 else max(steps - step, 0) * self.global_batch_size

    def _change_segment(self, state_dict: dict[str, Any], step: int) -> None:
        """Weights may change."""
        if self.mixture is not None:
            from ptft_lightning.data.mixture import go_on  # a leaf

            go_on(self, state_dict["mixture"], step)

    def _settle_segments(self) -> None:
        """The shares of a mixture are part of them."""
        if self.mixture is not None:
            from ptft_lightning.data.mixture import settle  # a leaf

            settle(self)

    def epochs_samples(self, epochs: int) -> int:
        """See `PhaseData`."""
        return self.train_rows.epochs_samples(epochs)

    def _fetch_ahead(self) -> None:
        """Where a store is behind a URL: one process of each host fetches its shards early."""
        remote = any(store.cache is not None for store in self.train_rows.stores)
        if remote and self.prefetch is None and self._trainer().local_rank == 0:
            from ptft_lightning.data.prefetch import Prefetch

            self.prefetch = Prefetch(self.train_rows, self.next_sample)
            self.prefetch.start()

    def next_sample(self) -> int:
        """The first sample of the step to come."""
        return self.segments.span(self._trainer().global_step)[0]

    def teardown(self, stage: str) -> None:
        """Fetch no more."""
        if self.prefetch is not None:
            self.prefetch.stop()
            self.prefetch = None

    def on_exception(self, exception: BaseException) -> None:
        """The same: Lightning does not come to `teardown`."""
        self.teardown("fit")

    def rows_of(self, store: str, split: str) -> Rows:
        """The rows of one split of a store."""
        grows = self.growing and store == self.store
        length = self.objective.text_length(self.length, self.tokenizer)
        if grows and split == "train":
            return self.growing_store.rows(self.layout, length, self.seed)
        part = self.growing_store.first if grows else None
        opened = TokenStore(store, split, self.cache, part)
        order = self.seed, self.window, split == "train"
        return lay_out(opened, self.layout, length, self.objective, self.tokenizer, order)

    @property
    def predicted_per_byte(self) -> float | None:
        """For bits-per-byte; None where the tokenizer does not give the text back."""
        store = self.validation_rows.store if len(self.validation_rows) else self.train_rows.store
        return store.predicted_per_byte if store.manifest.round_trips else None

    @property
    def train_samples(self) -> int:
        """Rows in one epoch."""
        return len(self.train_rows)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that begin within one pass over the rows."""
        return max(1, self.train_samples // self.global_batch_size)

    def step_numbers(self, step: int) -> Numbers:
        """The rows of a step, sorted by shard so that each rank touches few; none where the run is
        told to end while it waits for them."""
        if (last := self._trainer().max_steps - 1) >= 0:
            step = min(step, last)  # asked ahead of the end, where a growing store may have none
        numbers = np.arange(*self.segments.span(step), dtype=np.int64)
        return numbers[np.argsort(self.train_rows.shards_of(numbers), kind="stable")]

    def identity(self) -> dict[str, Any]:
        """What decides the content of each sample."""
        named = {name: getattr(self, name) for name in ("layout", "length", "seed", "window")}
        fingerprint = self.manifest_of(self.store).fingerprint
        return {"store": fingerprint, **named, **self.train_rows.mixture}

    @property
    def places(self) -> list[str]:
        """See `PhaseData`."""
        return list(self.stores.values())

    @property
    def source_names(self) -> list[str]:
        """See `PhaseData`."""
        return [] if self.mixture is None else list(self.stores)

    def _dataset(self, rows: Rows) -> RowDataset:
        audit = self.audit is not None
        given = rows, self.objective, self.tokenizer, self.seed, audit
        return batch_rows(self.layout, *given)

    def train_dataloader(self) -> BatchLoader:
        """Endless training micro-batches."""
        self._fetch_ahead()  # not before: only now is a resumed run at its step
        return self.train_loader(self._dataset(self.train_rows))

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The held-out rows, once; nothing where none were held out."""
        rows = self.validation_rows
        return self.pass_over(rows) if len(rows) else []

    def pass_over(self, rows: Rows) -> BatchLoader:
        """Rows once, in their order, shared out between the ranks."""
        return self.pass_loader(self._dataset(rows), len(rows))

    test_dataloader = val_dataloader
