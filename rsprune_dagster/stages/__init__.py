"""One module for each asset: load its inputs, call the library, write its folder."""
