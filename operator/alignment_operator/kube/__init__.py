"""The Kubernetes runtime: client, reflector, queue, world."""
