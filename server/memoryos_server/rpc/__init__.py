"""gRPC: how calls come in, are checked, measured and answered.

Everything is driven by the method records of `memoryos.schema`; no method is listed here. This package knows gRPC and
the generated code, and nothing of stores or providers.
"""
