"""The laptop's runtime: role instances as processes, addresses as ports of 127.0.0.1, volumes as folders."""
