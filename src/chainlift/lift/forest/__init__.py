"""The images below some directories as a forest: who stands on whom, what is broken, what would mend it."""
