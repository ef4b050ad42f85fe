"""The stores: what keeps memory, and how it is sealed. Adapters of `domain.ports`; nothing here knows of RPCs."""
