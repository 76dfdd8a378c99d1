"""Getting models from a hub: the one room that knows the network, used by `models pull` alone."""
