"""The pictures a person judges the pruning by."""
