"""The verbs that answer many records: batch, merge, replay, audit."""
