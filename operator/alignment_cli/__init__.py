"""alignctl: the same manifest on a laptop, without a cluster."""
