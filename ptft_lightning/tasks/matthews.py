"""Matthews' correlation coefficient of a classification."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class Matthews(MulticlassConfusionMatrix):
    """Correlation of predicted and true classes, -1 to 1; 0 where either never varies.

    The form for several classes of Gorodkin (2004), as in scikit-learn. That of torchmetrics
    gives 1 where one class alone occurs and is always predicted, and computes in float32.
    """

    def compute(self) -> Tensor:
        """From the counts of all ranks."""
        counts = super().compute().cpu().double()  # Apple's GPUs have no float64
        true, guessed, all_ = counts.sum(1), counts.sum(0), counts.sum()
        covariance = counts.trace() * all_ - true @ guessed
        spread = (all_**2 - true @ true) * (all_**2 - guessed @ guessed)
        return covariance / spread.sqrt() if spread > 0 else spread
