"""The ``chainlift`` command: one file a verb; parse, call one function, print."""
