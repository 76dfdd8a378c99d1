"""Many records: an answer to each, resumable (docs/batch.md)."""
