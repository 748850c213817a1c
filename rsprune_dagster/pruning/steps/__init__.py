"""The method on folders: each stage reads the tables of earlier stages, calls the library and writes its own."""
