"""The gRPC server: memory for agents, on stores of its own."""
