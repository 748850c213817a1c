"""What every layer uses: errors, progress, terminal, files, locks, hashes."""
