"""From phase one to phase two: bundles, preflight, lineage."""
