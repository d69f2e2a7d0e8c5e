"""What a line of progress says."""

from __future__ import annotations

from ptft_lightning.modules.progress_callback import MOST, format_validation


def test_a_few_metrics_are_all_told() -> None:
    assert format_validation({"val_loss": 1.5, "val_f1": 0.25}) == "val_loss 1.5000, val_f1 0.2500"


def test_of_many_the_first_are_told_and_the_rest_counted() -> None:
    values = {"val_loss": 1.0} | {f"val_f1_{kind}": 0.0 for kind in range(30)}
    line = format_validation(values)
    assert line.startswith("val_loss 1.0000, val_f1_0 0.0000")
    assert line.count("val_") == MOST
    assert line.endswith(f", {31 - MOST} more in metrics.csv")
