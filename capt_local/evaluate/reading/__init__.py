"""Files of others, read strictly: texts, records, rows, settings."""
