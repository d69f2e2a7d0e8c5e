"""ELECTRA: its tensors and config, of the discriminator; the generator is a model apart."""

from __future__ import annotations

from typing import Any, ClassVar

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.errors import UserError
from ptft_lightning.interop.encoders import DENSE_CLASSIFIER, Bert
from ptft_lightning.interop.family import Heads, Table, Values
from ptft_lightning.interop.settings import Settings
from ptft_lightning.objectives.replaced import ALONE


class Electra(Bert):
    """ELECTRA (Clark et al. 2020): BERT with other heads, its embeddings perhaps narrower."""

    name = "electra"
    prefix = "electra."
    heads: ClassVar[Heads] = {
        "ElectraForPreTraining": ALONE,
        "ElectraForMaskedLM": "masked",
        "ElectraForSequenceClassification": "classification",
        "ElectraForTokenClassification": "tagging",
        "ElectraForQuestionAnswering": "question_answering",
        "ElectraModel": None,
    }
    unused = r"(?!)"
    lent: ClassVar[dict[str, str]] = {}
    spare: ClassVar[dict[str, str]] = {}
    defaults: ClassVar[Values] = {**Bert.defaults, "embedding_size": 128}

    def read(self, theirs: Settings) -> TransformerConfig:
        """See `Family`.

        Raises:
            UserError: embeddings and blocks differ in width.
        """
        narrow, wide = theirs["embedding_size"], theirs["hidden_size"]
        if narrow != wide:
            raise UserError(
                f"'{theirs.place}' has embedding_size {narrow} and hidden_size {wide}: this "
                "program's Transformer has no projection from embeddings to blocks of another "
                "width, as ELECTRA's small size and its generators have; the discriminators of "
                "the base and large sizes load"
            )
        return super().read(theirs)

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """See `Family`."""
        return {**super().write(config), "embedding_size": config.dim}

    def head_table(self, head: str, tied: bool) -> Table:
        """See `Family`."""
        if head == "classification":
            return DENSE_CLASSIFIER
        if head == ALONE:
            return {
                "head.dense.*": "discriminator_predictions.dense.*",
                "head.classifier.*": "discriminator_predictions.dense_prediction.*",
            }
        return {
            "head.dense.*": "generator_predictions.dense.*",
            "head.norm.*": "generator_predictions.LayerNorm.*",
            "head.projection.*": "generator_lm_head.*",
        }

    def read_classification(self, theirs: Settings) -> dict[str, Any]:
        """The first token through a dense layer with GELU and no norm."""
        return {**super().read_classification(theirs), "transform": "plain_gelu"}
