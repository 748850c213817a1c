"""The method: entropy, embedding, scenes, clustering, selection, baselines."""
