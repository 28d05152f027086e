"""From untrusted bytes to the pixels that a model sees."""
