"""The JSON bridge: HTTP routes made from the protos, spoken to the gRPC server.

It keeps no list of methods and no state but a channel; whatever it serves, a proto declares (the OpenAI-shaped
chat route and `/metrics` excepted).
"""
