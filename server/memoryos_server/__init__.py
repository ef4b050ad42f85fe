"""The gRPC server: memory for agents, on stores of its own."""

import os

# gRPC would start its threads anew in every fork, also in that moment before a child of ours becomes another program, and may
# crash there. No child of this process ever uses gRPC. Read when gRPC is first used.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
