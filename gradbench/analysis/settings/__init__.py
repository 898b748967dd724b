"""What a record says of the settings that were tried: side by side, and which of several axes matter."""
