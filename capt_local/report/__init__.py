"""How steps and results look: on a terminal, as JSON. The one place that prints is `screen`."""
