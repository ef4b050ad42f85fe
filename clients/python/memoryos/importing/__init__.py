"""`memoryos import`: what other systems keep, brought in by the client.

Readers (`jsonl`, `chatgpt`, `mem0`) turn a file of any size into items, one after another; `run` sends them. Every item has
an event id that follows from its source, so running an import again adds nothing twice and goes on where it was interrupted.
"""
