"""Options: made from the fields of configurations, with their types and the places that values come from."""
