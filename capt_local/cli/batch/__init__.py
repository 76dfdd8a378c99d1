"""The verb that answers many records: batch."""
