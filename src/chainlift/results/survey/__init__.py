"""What a survey leaves behind: a file of JSON lines, and what is derived from it."""
