"""The pictures and tables that a person judges the pruning by."""
