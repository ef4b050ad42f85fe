"""How well memory is found again, measured through the public API beside plain BM25."""
