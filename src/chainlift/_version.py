"""The version, read by the build and by ``chainlift --version``."""

__version__ = "0.1.0"
