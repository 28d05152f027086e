"""Stage one: a teacher encodes every planned row once, part by part, into a cache."""
