"""A folder from which capt-local installs without a network: wheels, hashes, bundle, installer."""
