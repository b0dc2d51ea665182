"""The operations behind the modules, as functions."""
