"""What the system does, in plain Python: no gRPC, no store, no network."""
