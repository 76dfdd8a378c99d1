"""`capt-local models`: the bundles of this machine, and those that travel."""
