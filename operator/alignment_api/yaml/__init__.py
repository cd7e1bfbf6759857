"""YAML text: read strictly where readers disagree, and written so that all of them agree."""
