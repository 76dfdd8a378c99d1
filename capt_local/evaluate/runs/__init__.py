"""An evaluation as it runs: items, results, journal."""
