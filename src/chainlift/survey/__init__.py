"""Many chains at once: those of a host, or of a fleet."""
