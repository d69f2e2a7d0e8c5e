"""What trackers are told beside metrics, and what is W&B's own; nothing here trains anything."""
