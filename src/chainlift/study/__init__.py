"""A study's plan, building chains, the probes and the runner."""
