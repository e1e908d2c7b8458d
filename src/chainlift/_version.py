"""The version, read by the build and by ``chainlift --version``."""

__version__ = "0.2.0.dev0"
