"""Software-defined assets, a thin module each."""
