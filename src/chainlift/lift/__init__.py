"""Index, squash, flatten, restore: make a long chain read like one image."""
