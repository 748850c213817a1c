"""One self-contained HTML page on a prune: what went in, what stayed, why the rest went. `render.py` has the story."""
