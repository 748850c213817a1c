"""What must hold of the assets, asked of their folders: each check gives a verdict with a sentence and its figures."""
