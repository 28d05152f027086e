"""Bytes and addresses: files opened with care, here or over the network, and what is spelt in them."""
