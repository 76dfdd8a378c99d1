"""The training recipe of the demo trio: a target, an expert and the expert's base."""
