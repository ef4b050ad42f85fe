"""How fast it is, beside the least that gRPC costs on the same machine in the same run."""
