"""Online detection on Ray Serve: reserved, nothing is served yet."""
