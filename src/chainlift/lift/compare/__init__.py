"""What two chains read, compared: by our own reader, and through stock QEMU before anything is switched to."""
