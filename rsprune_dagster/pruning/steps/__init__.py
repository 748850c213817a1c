"""The method on folders: each step reads the tables of those before it, calls the method, writes its own."""
