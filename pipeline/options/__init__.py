"""Where option values come from, and the types that check them."""
