"""Generated from the protos; `make gen` makes it anew."""
