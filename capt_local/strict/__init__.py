"""Files of others, read strictly: what is not quite right is refused, with its place.

No error holds a part of a file or its name: both may be a patient's.
"""
