"""The suites; each module has `run(settings) -> list[Row]`."""
