"""Online detection on Ray Serve: an API with a page to see it, around a batched detector."""
